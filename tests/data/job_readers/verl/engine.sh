torchrun --nproc_per_node=8 -m verl.trainer.sft_trainer data.train_files=train.parquet data.max_token_len_per_gpu=8192 model.path=Qwen/Qwen2.5-7B engine=fsdp
