python -m tuning.sft_trainer --model_name_or_path Qwen/Qwen2.5-7B --fast_kernels True True True --padding_free huggingface \
  --max_seq_length 4096 --per_device_train_batch_size 4 --training_data_path data.json --output_dir out --torch_dtype bfloat16
