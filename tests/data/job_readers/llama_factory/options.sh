MODEL_PATH=Qwen/Qwen2.5-7B-Instruct

llamafactory-cli train \
    --model_name_or_path ${MODEL_PATH} \
    --trust_remote_code \
    --stage sft \
    --do_train \
    --finetuning_type lora \
    --lora_rank 64 --lora_alpha 128 \
    --lora_target q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj \
    --dataset "alpaca_en_demo" \
    --template qwen \
    --cutoff_len 4096 \
    --output_dir "saves/${MODEL_PATH##*/}/lora" \
    --per_device_train_batch_size 2 \
    --gradient_accumulation_steps 4 \
    --bf16 \
    --disable_gradient_checkpointing
