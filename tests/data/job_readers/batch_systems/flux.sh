#!/bin/bash
# flux: --nodes=1 --gpus-per-node=8
flux run -N 1 accelerate launch --num_processes 8 -m trl.scripts.sft --model_name_or_path Qwen/Qwen2.5-3B \
  --max_length 2048 --per_device_train_batch_size 4 --packing
