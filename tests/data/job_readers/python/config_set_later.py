from trl import SFTConfig, SFTTrainer

config = SFTConfig(output_dir="o", per_device_train_batch_size=2, bf16=True)
length = longest(data)
if length < 4096:
    config.max_length = length
SFTTrainer("google/gemma-2-2b", args=config, train_dataset=data).train()
