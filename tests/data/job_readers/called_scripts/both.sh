export MODEL=Qwen/Qwen2.5-7B
bash train.sh 1024 8
trl sft --model_name_or_path Qwen/Qwen2.5-7B --max_length 2048
