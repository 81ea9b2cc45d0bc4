#!/bin/bash
# 2 nodes x 8
deepspeed --num_nodes 2 --num_gpus=8 --hostfile hosts.txt --master_port 9901 \
  train.py \
  --deepspeed ds/z3.json \
  --model_name_or_path meta-llama/Llama-3.1-8B \
  --model_max_length 1024 \
  --per_device_train_batch_size 2 --gradient_accumulation_steps 4 \
  --bf16 --gradient_checkpointing \
  --report_to none >> log.txt 2>&1
