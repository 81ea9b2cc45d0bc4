from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-7B", dtype="bfloat16")
if LOW_MEMORY:
    model.gradient_checkpointing_enable()
Trainer(model=model, args=TrainingArguments(output_dir="o", bf16=True)).train()
