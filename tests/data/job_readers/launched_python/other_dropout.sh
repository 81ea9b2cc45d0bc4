accelerate launch --num_processes 2 --mixed_precision bf16 fit.py --model_name_or_path Qwen/Qwen2.5-3B --adapter.dropout 0.1 \
    --per_device_train_batch_size 2 --max_length 1024
