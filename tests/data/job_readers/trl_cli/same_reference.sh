accelerate launch --num_processes 8 scripts/run_dpo.py --model_name_or_path RLHFlow/LLaMA3-SFT --ref_model RLHFlow/LLaMA3-SFT --beta 0.1 \
    --max_length 2048 --per_device_train_batch_size 1 --bf16 --gradient_checkpointing
