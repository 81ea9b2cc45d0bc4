import argparse

from trl import SFTConfig, SFTTrainer

parser = argparse.ArgumentParser()
parser.add_argument("--length", type=int, default=1024)
args = parser.parse_args()
args.length = args.length * 2
SFTTrainer("Qwen/Qwen2.5-7B", args=SFTConfig(per_device_train_batch_size=2, max_length=args.length)).train()
