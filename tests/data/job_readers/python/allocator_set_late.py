import os

from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-7B", dtype="bfloat16")
os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "max_split_size_mb:128,expandable_segments:True"
args = SFTConfig(per_device_train_batch_size=2, max_length=2048)
SFTTrainer(model, args=args, train_dataset=data).train()
