accelerate launch --mixed_precision bf16 --num_processes 2 open_instruct/finetune.py \
    --model_name_or_path Qwen/Qwen2.5-7B --per_device_train_batch_size 1 --dataset_mixer_list a/b 1.0
