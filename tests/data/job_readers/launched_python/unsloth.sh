accelerate launch --num_processes 2 unsloth_sft.py --model_name_or_path Qwen/Qwen2.5-7B --lora_r 32 --max_seq_length 1536 \
  --per_device_train_batch_size 4 --gradient_accumulation_steps 16 --bf16 --output_dir out --learning_rate 1e-5
