if [ "$STRATEGY" == "deepspeed" ]; then
    accelerate launch --use_deepspeed --zero_stage 3 --num_processes 8 -m trl.scripts.sft --model_name_or_path Qwen/Qwen2.5-3B
else
    accelerate launch --multi_gpu --num_processes 2 -m trl.scripts.sft --model_name_or_path Qwen/Qwen2.5-3B
fi
