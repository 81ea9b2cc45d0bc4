from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-7B", dtype="bfloat16")
for p in model.model.layers[:20].parameters():
    p.requires_grad = False
Trainer(model=model, args=TrainingArguments(per_device_train_batch_size=1, bf16=True, max_steps=9)).train()
