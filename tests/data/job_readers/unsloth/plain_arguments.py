from transformers import TrainingArguments
from trl import SFTTrainer
from unsloth import FastLanguageModel

model, tokenizer = FastLanguageModel.from_pretrained("unsloth/Qwen2.5-7B", max_seq_length=2048, load_in_4bit=True)
model = FastLanguageModel.get_peft_model(model, r=32)
args = TrainingArguments(output_dir="out", per_device_train_batch_size=2, bf16=True)
trainer = SFTTrainer(model=model, tokenizer=tokenizer, args=args, train_dataset=dataset, max_seq_length=2048)
trainer.train()
