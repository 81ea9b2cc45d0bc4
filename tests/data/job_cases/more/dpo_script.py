from trl import DPOConfig, DPOTrainer
args = DPOConfig(max_length=1024, per_device_train_batch_size=1)
DPOTrainer(model="Qwen/Qwen2.5-7B", args=args).train()
