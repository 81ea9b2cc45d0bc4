#!/usr/bin/env bash
set -euo pipefail
export CUDA_VISIBLE_DEVICES="0,1,2,3"
MODEL=${MODEL:-"Qwen/Qwen2.5-7B"}   # override with MODEL=...
DS="ds/z2.json"

torchrun \
    --nproc_per_node=4 --master_port=29501 \
    src/train_sft.py \
    --model_name_or_path "${MODEL}" \
    --data_path ./data/alpaca.json \
    --bf16 True \
    --output_dir ./out \
    --per_device_train_batch_size 4 \
    --gradient_accumulation_steps 8 \
    --gradient_checkpointing True \
    --optim adamw_torch \
    --deepspeed $DS
