#!/bin/bash
accelerate launch --use_deepspeed --zero_stage 3 --num_processes 4 --gradient_accumulation_steps 16 \
  train.py \
  --model_name_or_path meta-llama/Llama-2-7b-hf \
  --dataset_name timdettmers/openassistant-guanaco \
  --max_seq_length 2048 \
  --per_device_train_batch_size 4
