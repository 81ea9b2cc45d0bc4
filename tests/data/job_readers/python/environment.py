import os
from trl import SFTConfig, SFTTrainer
SFTTrainer("Qwen/Qwen2.5-7B", args=SFTConfig(per_device_train_batch_size=2, max_length=int(os.environ["LEN"]))).train()
