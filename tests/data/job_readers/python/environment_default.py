import os

from trl import SFTConfig, SFTTrainer

NAME = "Qwen2.5"
SIZE = os.environ.get("MODEL_SIZE", "7B")
BATCH = int(os.getenv("BATCH", "2"))
args = SFTConfig(per_device_train_batch_size=BATCH, max_length=2048, output_dir=f"out/{NAME}")
SFTTrainer(f"Qwen/{NAME}-{SIZE}", args=args).train()
