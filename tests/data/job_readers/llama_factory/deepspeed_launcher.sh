deepspeed --num_gpus 8 --master_port=9901 src/train.py \
    --deepspeed examples/deepspeed/own.json \
    --stage sft --do_train --model_name_or_path Qwen/Qwen2.5-7B --dataset d --template qwen --finetuning_type full \
    --cutoff_len 1024 --per_device_train_batch_size 4 --gradient_accumulation_steps 1 --bf16
