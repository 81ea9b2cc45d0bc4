accelerate launch --num_processes 4 vectors.py --model_name_or_path Qwen/Qwen2.5-7B --batch_size 8
