from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from config import cfg


def adapters():
    return LoraConfig(r=cfg.rank, lora_dropout=0.05, target_modules="all-linear")


args = SFTConfig(output_dir="o", per_device_train_batch_size=2, max_length=2048, bf16=True)
SFTTrainer("google/gemma-2-2b", args=args, train_dataset=data, peft_config=adapters()).train()
