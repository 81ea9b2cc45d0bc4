python src/train_bash.py --finetuning_type lora --model_name_or_path Qwen/Qwen2.5-7B --per_device_train_batch_size 4 --bf16
