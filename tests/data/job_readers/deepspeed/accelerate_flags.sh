accelerate launch --use_deepspeed --zero_stage 2 --mixed_precision bf16 --num_processes 8 --offload_optimizer_device none \
    examples/scripts/sft.py --model_name_or_path Qwen/Qwen2.5-7B --dataset_name d --per_device_train_batch_size 2 --packing
