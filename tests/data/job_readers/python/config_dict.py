from trl import SFTConfig, SFTTrainer

config = {"model": "Qwen/Qwen3-8B", "lr": 1e-5, "length": 4096}
args = SFTConfig(
    max_length=config["length"],
    per_device_train_batch_size=config.get("batch", 4),
    gradient_accumulation_steps=config.get("length", 1) // 512,
)
SFTTrainer(config["model"], args=args).train()
