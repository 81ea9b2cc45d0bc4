python mason.py --cluster ai2/jupiter --workspace ai2/tulu-3-dev --num_nodes 1 --gpus 8 -- \
    accelerate launch --mixed_precision bf16 --num_processes 8 --use_deepspeed \
    --deepspeed_config_file ds_configs/stage3.conf open_instruct/finetune.py --model_name_or_path Qwen/Qwen2.5-7B \
    --max_seq_length 8192 --per_device_train_batch_size 1 --gradient_accumulation_steps 2 --packing \
    --gradient_checkpointing --dataset_mixer_list allenai/tulu-3-sft-mixture 1.0
