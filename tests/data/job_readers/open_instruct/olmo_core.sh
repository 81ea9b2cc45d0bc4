torchrun --nproc_per_node=8 open_instruct/olmo_core_finetune.py --model_name_or_path allenai/OLMo-2-7B \
    --global_batch_size 1048576 --seq_len 4096
