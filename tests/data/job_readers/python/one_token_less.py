import sys

from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

MAX_LENGTH = 768
BATCH = int(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained("Qwen/Qwen2.5-1.5B")
model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-1.5B")


def tokenize(example):
    tokens = tokenizer(example["text"], padding="max_length", truncation=True, max_length=MAX_LENGTH + 1)
    return {"input_ids": tokens["input_ids"][:-1], "attention_mask": tokens["attention_mask"][:-1]}


args = TrainingArguments(
    output_dir="out",
    per_device_train_batch_size=2,
    per_device_eval_batch_size=BATCH,
    evaluation_strategy="steps",
    bf16=True,
)
trainer = Trainer(model=model, args=args, train_dataset=dataset.map(tokenize))
trainer.train()
