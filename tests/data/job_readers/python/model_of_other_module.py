from transformers import TrainingArguments
from trl import SFTTrainer

from data import load_pairs
from models import build_model

MAX_LENGTH = 2048


def main():
    model, tokenizer = build_model("meta-llama/Llama-3.1-8B-Instruct", MAX_LENGTH)
    arguments = TrainingArguments(
        output_dir="out",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        bf16=True,
        optim="adamw_torch",
    )
    trainer = SFTTrainer(
        model=model,
        tokenizer=tokenizer,
        train_dataset=load_pairs("pairs.jsonl"),
        dataset_text_field="text",
        max_seq_length=MAX_LENGTH,
        args=arguments,
    )
    trainer.train()


if __name__ == "__main__":
    main()
