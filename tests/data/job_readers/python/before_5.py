from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

tokenizer = AutoTokenizer.from_pretrained("mistralai/Mistral-7B-v0.1", model_max_length=2048)
model = AutoModelForCausalLM.from_pretrained("mistralai/Mistral-7B-v0.1", use_flash_attention_2=True)
args = TrainingArguments(output_dir="out", bf16=True, gradient_checkpointing=True, per_device_train_batch_size=2)
Trainer(model=model, tokenizer=tokenizer, args=args, train_dataset=load()).train()
