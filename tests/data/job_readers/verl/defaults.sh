torchrun --nproc_per_node=4 -m verl.trainer.fsdp_sft_trainer data.train_files=train.parquet model.partial_pretrain=google/gemma-2b-it
