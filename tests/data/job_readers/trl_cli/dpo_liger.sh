trl dpo --model_name_or_path Qwen/Qwen2-7B-Instruct --dataset_name trl-lib/ultrafeedback_binarized --use_liger_kernel
