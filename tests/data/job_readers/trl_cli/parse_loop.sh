#!/bin/bash
# bash parse_loop.sh [-m MODEL] [-l LENGTH]
GPUS_PER_NODE=$(python -c 'import torch; print(torch.cuda.device_count())')
MODEL="Qwen/Qwen2.5-7B"
LENGTH=4096

function usage() {
    echo '
Usage: bash parse_loop.sh [-m MODEL] [-l LENGTH]
'
}

while [[ "$1" != "" ]]; do
    case $1 in
        -m | --model ) shift; MODEL=$1 ;;
        -l | --length ) shift; LENGTH=$1 ;;
        -h | --help ) usage; exit 0 ;;
        * ) echo "Unknown argument ${1}"; exit 1 ;;
    esac
    shift
done

torchrun --nproc_per_node $GPUS_PER_NODE -m trl.scripts.sft \
    --model_name_or_path $MODEL --max_length $LENGTH \
    --per_device_train_batch_size 2 --dataset_name trl-lib/Capybara --packing
