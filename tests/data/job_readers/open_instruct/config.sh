accelerate launch --mixed_precision bf16 --num_processes 8 --use_deepspeed --deepspeed_config_file ds_configs/stage3.conf \
    open_instruct/finetune.py sft.yaml --max_seq_length=2048 --per_device_train_batch_size=2
