#!/bin/bash
python tools/preprocess_distillation_training.py --model_name_or_path Qwen/Qwen2.5-7B --data raw.jsonl
accelerate launch --num_processes 4 generate.py --model sft-full --batch_size 8
torchrun --nproc_per_node 4 train.py --model_name_or_path Qwen/Qwen2.5-7B --per_device_train_batch_size 2 --bf16 True \
    --use_peft --lora_r 8 --lora_target_modules q_proj v_proj --max_length 1024 --dataset_name mine
python -m tools.evaluate_sft --model_name_or_path out
