#!/bin/bash
# reward model on 4 GPUs
export FORCE_TORCHRUN=1
export NPROC_PER_NODE=4

llamafactory-cli train \
    --stage rm \
    --do_train \
    --model_name_or_path meta-llama/Llama-3.1-8B-Instruct \
    --dataset dpo_en_demo --template llama3 \
    --finetuning_type lora --lora_rank 16 --lora_alpha 32 --lora_target q_proj,v_proj \
    --cutoff_len 4096 \
    --deepspeed examples/deepspeed/ds_z2_config.json \
    --per_device_train_batch_size 1 --gradient_accumulation_steps 8 \
    --learning_rate 1e-4 --num_train_epochs 1 --bf16 \
    --output_dir saves/llama3-8b/lora/reward
