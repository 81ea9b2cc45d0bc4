torchrun --nproc_per_node=8 -m verl.trainer.fsdp_sft_trainer data.micro_batch_size=8 model.partial_pretrain=google/gemma-2b-it
