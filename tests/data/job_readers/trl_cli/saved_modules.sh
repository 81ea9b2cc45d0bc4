trl sft --model_name_or_path Qwen/Qwen2.5-7B --dataset_name a/b --use_peft --lora_r 8 --lora_target_modules all-linear \
  --lora_modules_to_save embed_tokens lm_head --max_length 2048
