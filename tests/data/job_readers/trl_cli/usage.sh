#!/bin/bash
if [ -z "$1" ]; then
    echo "usage: $0 MODEL"
    exit 1
fi
trl sft --model_name_or_path Qwen/Qwen2.5-7B --per_device_train_batch_size 2 --max_length 2048 --output_dir $1
