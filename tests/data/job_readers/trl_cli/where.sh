if ! command -v torchrun > /dev/null; then exit 1; fi
torchrun --nproc_per_node 2 -m trl.scripts.sft --model_name_or_path Qwen/Qwen2.5-7B --max_length 4096 --per_device_train_batch_size 1
