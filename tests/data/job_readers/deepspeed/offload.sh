deepspeed train.py --deepspeed ds/z3_offload.json --model_name_or_path Qwen/Qwen2.5-7B --per_device_train_batch_size 2 --bf16 True
