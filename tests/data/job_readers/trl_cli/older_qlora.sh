accelerate launch --num_processes 1 examples/scripts/sft.py --model_name_or_path facebook/opt-350m --dataset_name a/b \
  --load_in_4bit --use_peft --lora_r 16 --lora_alpha 32 --lora_target_modules q_proj v_proj --torch_dtype bfloat16 \
  --max_seq_length 512 --per_device_train_batch_size 4 --bf16
