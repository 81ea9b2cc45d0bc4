accelerate launch --multi_gpu --num_processes 8 train.py --model_name_or_path Qwen/Qwen2.5-7B --gradient_checkpointing True \
  --use_reentrant True --max_length 2048 --packing True --per_device_train_batch_size 1
