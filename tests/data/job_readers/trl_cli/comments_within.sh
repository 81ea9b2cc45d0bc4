trl sft --model_name_or_path Qwen/Qwen2.5-7B --dataset_name trl-lib/Capybara \
  \
  `# memory` \
  --per_device_train_batch_size 2 --max_length 2048 \
  `# adapters` \
  --use_peft --lora_r 32 --lora_target_modules q_proj v_proj
