from trl import SFTConfig, SFTTrainer

args = SFTConfig(output_dir="o", per_device_train_batch_size=2, max_length=1024, bf16=True)
keywords = {"args": args, "train_dataset": data}
if rank:
    keywords["peft_config"] = adapters(rank)
SFTTrainer("google/gemma-2-2b", **keywords).train()
