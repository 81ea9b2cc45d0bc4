deepspeed --exclude worker-1:0 train.py --deepspeed ds/z3.json --model_name_or_path Qwen/Qwen2.5-7B --max_length 4096 --per_device_train_batch_size 2 --bf16
