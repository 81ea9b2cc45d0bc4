#!/bin/bash
# LENGTH of the calling script is not exported
LENGTH=${LENGTH:-$1}
accelerate launch --num_processes 4 -m trl.scripts.sft --model_name_or_path $MODEL --dataset_name a/b \
  --max_length $LENGTH --per_device_train_batch_size $2
