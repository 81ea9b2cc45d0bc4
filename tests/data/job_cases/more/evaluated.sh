LEN=2048
[ -n "$LONG" ] && LEN=16384
CMD="trl sft --model_name_or_path Qwen/Qwen2.5-7B --use_peft --per_device_train_batch_size 1 --max_length $LEN"
echo "$CMD"
eval "$CMD"
