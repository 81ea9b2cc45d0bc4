from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-1.5B", dtype="bfloat16")


def tokenize(examples):
    source = tokenizer(examples["source"], truncation=True, max_length=512)
    target = tokenizer(examples["target"], truncation=True, max_length=128)
    return {"input_ids": source["input_ids"] + target["input_ids"]}


Trainer(model=model, args=TrainingArguments(per_device_train_batch_size=2)).train()
