torchrun --nproc_per_node 8 train.py model.name=Qwen/Qwen2.5-7B data.max_length=4096 trainer.micro_batch_size=2
