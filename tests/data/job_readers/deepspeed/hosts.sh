deepspeed --include "worker-0:0,1,2,3@worker-1:4,5,6,7" --hostfile=hostfile trl/scripts/sft.py \
  --deepspeed ds/z3.json --model_name_or_path Qwen/Qwen2.5-7B --max_length 4096 --per_device_train_batch_size 2 --bf16 --use_peft --lora_r 16
