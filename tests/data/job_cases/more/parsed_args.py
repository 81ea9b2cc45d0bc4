import argparse
from trl import SFTConfig, SFTTrainer
parser = argparse.ArgumentParser()
parser.add_argument("--max-length", type=int, default=2048)
cli = parser.parse_args()
config = SFTConfig(max_length=cli.max_length, per_device_train_batch_size=1, learning_rate=1e-5)
SFTTrainer(model="Qwen/Qwen2.5-7B", args=config).train()
