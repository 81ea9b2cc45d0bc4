RUN=(python)
if [ "$NGPU" -gt 1 ]; then RUN=(torchrun --nproc_per_node 8); fi
"${RUN[@]}" train.py --model_name_or_path Qwen/Qwen2.5-7B --max_length 2048 --per_device_train_batch_size 1
