from trl import DPOConfig, DPOTrainer
args = DPOConfig(output_dir="o", per_device_train_batch_size=2, beta=0.1)
DPOTrainer("Qwen/Qwen2.5-7B", args=args).train()
