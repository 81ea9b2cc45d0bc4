set -e
accelerate launch --num_processes 2 train_args.py --model mistralai/Mistral-7B-v0.3 --bs 4
