accelerate launch --use_deepspeed --zero_stage 3 --num_processes 8 -m trl.scripts.sft --model_name_or_path Qwen/Qwen2.5-7B \
    --dataset_name trl-lib/Capybara --use_peft --lora_r 32 --max_length 4096 --per_device_train_batch_size 2 --output_dir out
