NUM_GPUS=$(nvidia-smi -L | wc -l)
TOTAL=64
torchrun --nproc_per_node $NUM_GPUS -m trl.scripts.sft --model_name_or_path Qwen/Qwen2.5-7B --dataset_name trl-lib/Capybara \
  --per_device_train_batch_size 2 --gradient_accumulation_steps $((TOTAL/NUM_GPUS/2)) --max_length 2048
