deepspeed --num_gpus 4 train.py --deepspeed ds/several.json --model_name_or_path Qwen/Qwen2.5-7B --max_length 4096 --per_device_train_batch_size 2 --bf16
