#!/bin/bash
# the options of the launcher come before those of its config
accelerate launch --config_file fsdp2.yaml --num_processes 4 \
  -m trl.scripts.sft --model_name_or_path Qwen/Qwen2.5-7B --dtype bfloat16 --no_gradient_checkpointing \
  --max_length 4096 --per_device_train_batch_size 2 --dataset_name a/b
