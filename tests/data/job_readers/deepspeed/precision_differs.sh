deepspeed train.py --deepspeed ds/fixed.json --model_name_or_path Qwen/Qwen2.5-7B --bf16 False
