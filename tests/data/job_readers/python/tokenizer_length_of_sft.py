from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

tokenizer = AutoTokenizer.from_pretrained("Qwen/Qwen2.5-7B")
tokenizer.model_max_length = 512
data = load("train.jsonl").map(lambda row: tokenizer(row["text"], truncation=True, max_length=tokenizer.model_max_length))
SFTTrainer("Qwen/Qwen2.5-7B", args=SFTConfig(per_device_train_batch_size=2), train_dataset=data).train()
