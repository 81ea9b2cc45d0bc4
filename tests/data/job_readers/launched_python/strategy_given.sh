accelerate launch main.py mode=train \
    model_name_or_path=Qwen/Qwen2.5-7B \
    strategy=deepspeed \
    max_length=4096 \
    per_device_train_batch_size=2 \
    gradient_accumulation_steps=4 \
    packing=true \
    bf16=true
