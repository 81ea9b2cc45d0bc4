torchrun --standalone --nnodes=1 --nproc_per_node=8 -m verl.trainer.fsdp_sft_trainer \
    data.train_files=train.parquet data.micro_batch_size_per_gpu=4 data.max_length=1024 \
    model.partial_pretrain=Qwen/Qwen2.5-7B-Instruct model.lora_rank=32 model.lora_alpha=16 model.target_modules=all-linear
