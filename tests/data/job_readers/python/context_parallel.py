from accelerate import ParallelismConfig
from trl import SFTConfig, SFTTrainer

shared = ParallelismConfig(cp_size=4, dp_shard_size=2)
args = SFTConfig(output_dir="out", per_device_train_batch_size=1, max_length=131072, parallelism_config=shared)
SFTTrainer(model="Qwen/Qwen2.5-7B", args=args, train_dataset=data).train()
