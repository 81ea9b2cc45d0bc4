accelerate launch --num_processes 4 iterate.py --model_name_or_path Qwen/Qwen2.5-7B --per_device_train_batch_size 2 --bf16 --max_length 1024
