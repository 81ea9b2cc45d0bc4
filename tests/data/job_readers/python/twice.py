from trl import SFTConfig, SFTTrainer
BATCH = 8
if DEBUG:
    BATCH = 1
SFTTrainer("Qwen/Qwen2.5-7B", args=SFTConfig(per_device_train_batch_size=BATCH, max_length=2048)).train()
