torchrun --nproc_per_node=2 seen.py --model_name_or_path HuggingFaceTB/SmolVLM2-2.2B-Instruct --output_dir out \
    --per_device_train_batch_size 2 --gradient_checkpointing True --bf16 True --image_size 384
