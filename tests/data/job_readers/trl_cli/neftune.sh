trl sft --model_name_or_path Qwen/Qwen2.5-7B --dataset_name a/b --max_length 2048 --per_device_train_batch_size 4 --neftune_noise_alpha 5
