#!/bin/bash
MODEL=$1
GPUS=$2
if [ -z "$MODEL" ]; then
    MODEL=Qwen/Qwen2.5-7B
fi
[[ -n "$GPUS" ]] || GPUS=4
if [ ! "$3" = "" ]; then
    LENGTH=$3
else
    LENGTH=2048
fi
accelerate launch --num_processes $GPUS -m trl.scripts.sft --model_name_or_path $MODEL --per_device_train_batch_size 2 --max_length $LENGTH
