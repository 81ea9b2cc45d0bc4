from transformers import TrainingArguments
from trl import SFTTrainer
args = TrainingArguments(output_dir="o", per_device_train_batch_size=4)
SFTTrainer("Qwen/Qwen2.5-7B", args=args, train_dataset=d).train()
