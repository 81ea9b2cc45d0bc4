torchrun --nproc_per_node 8 train.py \
    --config-name sft_qwen \
    model=Qwen/Qwen2.5-7B per_device_train_batch_size=2
