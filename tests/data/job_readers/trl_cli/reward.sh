trl reward --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct --dataset_name trl-lib/ultrafeedback_binarized \
  --per_device_train_batch_size 8 --gradient_checkpointing True --learning_rate 1.0e-5 --max_length 2048
