import os

from trl import SFTConfig, SFTTrainer

STEPS = 32 // int(os.environ.get("WORLD_SIZE", 1))
args = SFTConfig(per_device_train_batch_size=1, gradient_accumulation_steps=STEPS, max_length=2048)
SFTTrainer("Qwen/Qwen2.5-7B", args=args).train()
