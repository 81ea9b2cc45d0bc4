torchrun --nproc_per_node 2 \
    my/cli/train_it.py \
    --model_name_or_path huggyllama/llama-7b \
    --model_max_length 2048 \
    --adapter qlora \
    --load_in_4bit \
    --lora_r 64 \
    --lora_target_all_layers \
    --per_device_train_batch_size 8 \
    --gradient_accumulation_steps 8 \
    --bf16 \
    --evaluation_strategy no
