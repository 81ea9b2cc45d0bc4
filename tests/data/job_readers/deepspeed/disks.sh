deepspeed --num_gpus 8 sft.py --deepspeed ds/nvme.json --model_name_or_path Qwen/Qwen2.5-7B --max_length 1024 --packing \
  --dataset_name a/b --per_device_train_batch_size 1 --bf16
