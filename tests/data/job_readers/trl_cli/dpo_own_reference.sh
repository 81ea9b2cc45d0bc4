trl dpo --model_name_or_path Qwen/Qwen2-7B-Instruct --ref_model_name_or_path Qwen/Qwen2-0.5B --dataset_name acme/pairs
