from trl import SFTConfig, SFTTrainer

args = SFTConfig(output_dir="o", per_device_train_batch_size=2, max_length=1024, bf16=True)
from mine import make_adapters

SFTTrainer("google/gemma-2-2b", args=args, train_dataset=data, peft_config=make_adapters()).train()
