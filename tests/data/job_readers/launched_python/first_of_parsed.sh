torchrun --nproc_per_node 2 first_of_parsed.py --model_name Qwen/Qwen2.5-1.5B --seq_length 2048 --gradient_checkpointing True
