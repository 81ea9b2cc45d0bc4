trl dpo --model_name_or_path Qwen/Qwen2-7B-Instruct --dataset_name trl-lib/ultrafeedback_binarized --loss_type sigmoid hinge \
  --precompute_ref_log_probs true --beta 0.05 --max_length 4096 --per_device_train_batch_size 1 --optim adamw_torch
