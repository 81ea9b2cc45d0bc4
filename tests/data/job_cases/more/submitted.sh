uv run python submit.py --cluster west --gpus 8 -- accelerate launch --num_processes 8 --multi_gpu sft.py \
  --model_name_or_path Qwen/Qwen2.5-7B --max_length 2048 --packing --per_device_train_batch_size 4 --gradient_checkpointing 0
