import argparse
from trl import SFTConfig, SFTTrainer
p = argparse.ArgumentParser()
p.add_argument("--batch", type=int, default=4)
cli = p.parse_args()
args = SFTConfig(
    per_device_train_batch_size=cli.batch,
    max_length=2048,
)
SFTTrainer("Qwen/Qwen2.5-7B", args=args).train()
