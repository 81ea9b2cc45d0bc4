STRATEGY="ddp" # deepspeed / fsdp / ddp
USE_LORA=1
COMMON="--model_name_or_path Qwen/Qwen2.5-3B --per_device_train_batch_size 4 --max_length 1024 --bf16 True"
if [[ $USE_LORA -eq 1 ]]; then
    COMMON="$COMMON --use_peft --lora_r 32"
fi
if [ "$STRATEGY" == "deepspeed" ]; then
    accelerate launch --use_deepspeed --zero_stage 3 --num_processes 8 -m trl.scripts.sft $COMMON
elif [ "$STRATEGY" == "fsdp" ]; then
    accelerate launch --use_fsdp --num_processes 8 -m trl.scripts.sft $COMMON
else
    accelerate launch --multi_gpu --num_processes 2 -m trl.scripts.sft $COMMON
fi
