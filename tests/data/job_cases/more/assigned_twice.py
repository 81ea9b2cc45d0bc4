from trl import SFTConfig, SFTTrainer
BATCH = 1
if __import__("torch").cuda.device_count() > 1:
    BATCH = 8
SFTTrainer(model="Qwen/Qwen2.5-7B", args=SFTConfig(max_length=2048, per_device_train_batch_size=BATCH)).train()
