from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

model = AutoModelForCausalLM.from_pretrained("gpt2")
args = TrainingArguments(output_dir="out", per_device_train_batch_size=4, use_mps_device=False, half_precision_backend="auto", fp16=True)
Trainer(model=model, args=args, train_dataset=dataset).train()
