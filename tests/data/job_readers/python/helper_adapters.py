import torch
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from helpers import attach_lora

model = attach_lora(AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-8B", dtype=torch.bfloat16))
args = SFTConfig(output_dir="out", max_length=2048, per_device_train_batch_size=1)
SFTTrainer(model=model, args=args, train_dataset=data).train()
