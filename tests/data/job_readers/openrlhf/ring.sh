torchrun --nproc_per_node 8 -m openrlhf.cli.train_sft --pretrain Qwen/Qwen2.5-7B --max_len 32768 --ring_attn_size 4 --dataset x
