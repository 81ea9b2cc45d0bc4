accelerate launch --mixed_precision bf16 --num_processes 8 --use_deepspeed --deepspeed_config_file ds_configs/stage3.conf \
    open_instruct/finetune.py --model_name_or_path Qwen/Qwen2.5-7B --max_seq_length 65536 --sequence_parallel_size 4
