accelerate launch --num_processes 8 own_loop.py --model Qwen/Qwen2.5-7B --seq-length 4096
