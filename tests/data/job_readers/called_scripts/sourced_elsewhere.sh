BATCH=1
source /opt/settings.sh
trl sft --model_name_or_path Qwen/Qwen2.5-7B --max_length 1024 --per_device_train_batch_size $BATCH
