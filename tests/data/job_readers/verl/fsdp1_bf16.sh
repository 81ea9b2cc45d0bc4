torchrun --nproc_per_node=8 -m verl.trainer.fsdp_sft_trainer data.train_files=train.parquet data.max_length=4096 \
    model.partial_pretrain=meta-llama/Llama-3.1-8B model.strategy=fsdp model.fsdp_config.model_dtype=bf16 \
    model.enable_gradient_checkpointing=False model.use_liger=True
