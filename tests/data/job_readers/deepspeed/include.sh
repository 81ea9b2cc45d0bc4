deepspeed --include localhost:0,1,2,3 --master_port=$((29500 + 1)) trl/scripts/sft.py --deepspeed=ds/z3.json \
   --model_name_or_path Qwen/Qwen2.5-7B --dataset_name trl-lib/Capybara --max_length 4096 --use_peft --lora_r 32 \
   --lora_target_modules all-linear --per_device_train_batch_size 2
