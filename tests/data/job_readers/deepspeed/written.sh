#!/bin/bash
cat > ds_config.json <<EOF
{"bf16": {"enabled": true},
 "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"},
 "train_micro_batch_size_per_gpu": "auto"}
EOF
deepspeed train.py --deepspeed ds_config.json --model_name_or_path Qwen/Qwen2.5-7B --per_device_train_batch_size 1 --bf16 true
