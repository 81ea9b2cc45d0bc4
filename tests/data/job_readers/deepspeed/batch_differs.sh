# fixed.json says 4
deepspeed train.py --deepspeed ds/fixed.json --model_name_or_path Qwen/Qwen2.5-7B --per_device_train_batch_size 8 --bf16 True
