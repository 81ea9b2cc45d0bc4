torchrun --nproc_per_node 8 train_fsdp.py --model Qwen/Qwen2.5-7B --ctx 4096 --mbs 2
