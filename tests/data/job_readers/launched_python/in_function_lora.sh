formatted_time=$(date +"%Y%m%d%H%M%S")
deepspeed --include localhost:0,1 in_function.py \
    --model_name_or_path Qwen/Qwen2.5-1.5B \
    --output_dir output/$formatted_time/ \
    --per_device_train_batch_size 4 \
    --bf16 --use_lora true \
    --deepspeed zero2.json
