ACCELERATE_LOG_LEVEL=info accelerate launch --config_file=accelerate_file.yaml \
  -m trl.scripts.sft --model_name_or_path Qwen/Qwen2.5-7B \
  --dataset_name trl-lib/Capybara \
  --max_length 2048 --per_device_train_batch_size 1 --gradient_accumulation_steps 4
