accelerate launch --num_processes 4 trl/scripts/kto.py \
  --dataset_name trl-lib/kto-mix-14k --model_name_or_path Qwen/Qwen2-1.5B-Instruct --per_device_train_batch_size 16 \
  --use_peft --lora_target_modules=all-linear --lora_r=16 --lora_alpha=16 --desirable_weight 1.0 --beta 0.1
