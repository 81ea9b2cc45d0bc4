torchrun --nproc_per_node 2 train_flash.py \
    --model_name_or_path Qwen/Qwen2.5-7B-Instruct \
    --bf16 True \
    --per_device_train_batch_size 2 \
    --gradient_accumulation_steps 4 \
    --model_max_length 2048 \
    --gradient_checkpointing
