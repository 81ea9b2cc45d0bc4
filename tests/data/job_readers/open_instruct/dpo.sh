accelerate launch --mixed_precision bf16 --num_processes 8 open_instruct/dpo_tune_cache.py \
    --model_name_or_path allenai/Llama-3.1-Tulu-3-8B-SFT --max_seq_length 2048
