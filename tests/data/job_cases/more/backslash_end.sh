trl sft --model_name_or_path Qwen/Qwen2.5-7B --use_peft --lora_r 32 \
  --max_length 4096 \
  --per_device_train_batch_size 2 \
