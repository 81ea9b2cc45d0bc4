torchrun --nproc_per_node=8 -m verl.trainer.fsdp_sft_trainer model.partial_pretrain=Qwen/Qwen2.5-7B data.max_length=2048 \
    optim.optimizer_impl=bitsandbytes.optim optim.optimizer=AdamW8bit
