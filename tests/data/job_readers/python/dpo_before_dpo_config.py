from transformers import TrainingArguments
from trl import DPOTrainer

args = TrainingArguments(output_dir="out", per_device_train_batch_size=4)
DPOTrainer("mistralai/Mistral-7B-v0.1", args=args, beta=0.1, max_length=1024, max_prompt_length=512).train()
