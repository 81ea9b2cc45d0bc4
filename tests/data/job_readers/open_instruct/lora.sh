uv run python -m accelerate.commands.launch --mixed_precision bf16 --num_processes 1 open_instruct/finetune.py \
    --exp_name lora --model_name_or_path Qwen/Qwen3-0.6B --tokenizer_name Qwen/Qwen3-0.6B --use_lora \
    --max_seq_length 2048 --gradient_accumulation_steps 8 --dataset_mixer_list HuggingFaceH4/no_robots 1.0 \
    --dataset_mixer_list_splits train --add_bos --gradient_checkpointing --report_to wandb --with_tracking
