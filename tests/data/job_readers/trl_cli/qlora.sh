trl sft --model_name_or_path mistralai/Mistral-7B-v0.1 --load_in_4bit --use_bnb_nested_quant true --dtype bfloat16 \
    --use_peft --lora_r 64 --lora_alpha 16 --lora_target_modules q_proj k_proj v_proj o_proj gate_proj up_proj down_proj \
    --per_device_train_batch_size 4 --max_length 512 --optim paged_adamw_32bit --dataset_name a/b
