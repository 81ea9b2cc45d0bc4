# ablations
trl sft --model_name_or_path Qwen/Qwen2.5-1.5B --per_device_train_batch_size 8 --max_length 1024
trl sft --model_name_or_path Qwen/Qwen2.5-3B \
    --per_device_train_batch_size 4 --max_length 1024
trl sft --model_name_or_path Qwen/Qwen2.5-7B --per_device_train_batch_size 2 --max_length 1024
