accelerate launch --num_processes 8 spin/generate.py --model sft-full --batch_size 8 --frac_len 800
