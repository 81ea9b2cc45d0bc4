python train_args.py --model mistralai/Mistral-7B-v0.3 --max-len 4096 --quantize --bs 2 --no-checkpointing --epochs 1
