from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

MAX_LENGTH = 768
tokenizer = AutoTokenizer.from_pretrained("Qwen/Qwen2.5-1.5B")
model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-1.5B")


def tokenize(examples):
    return tokenizer(examples["text"], padding="max_length", truncation=True, max_length=MAX_LENGTH, return_tensors="pt")


args = TrainingArguments(output_dir="out", per_device_train_batch_size=2, evaluation_strategy="steps", bf16=True)
trainer = Trainer(model=model, args=args, train_dataset=dataset.map(tokenize))
trainer.train()
