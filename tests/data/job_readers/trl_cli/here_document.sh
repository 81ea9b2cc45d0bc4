set -x
BATCH=2
read -r -d '' training_commands <<EOF
trl.scripts.sft \
   --model_name_or_path Qwen/Qwen2.5-7B \
   --max_length 2048 \
   --per_device_train_batch_size $BATCH \
   --dataset_name trl-lib/Capybara \
   --use_peft --lora_r 32 --lora_target_modules all-linear
EOF

if [[ ${1} != "slurm" ]]; then
    torchrun --nproc_per_node 8 -m $training_commands
fi
