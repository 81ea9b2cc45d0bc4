trl sft --model_name_or_path Qwen/Qwen2.5-1.5B --dataset_name a/b --no_gradient_checkpointing --bf16 False \
  --max_length 1024 --loss_type nll --use_liger_kernel false
