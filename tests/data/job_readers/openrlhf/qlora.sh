deepspeed --module openrlhf.cli.train_sft --pretrain meta-llama/Llama-2-7b-hf --lora_rank 16 --load_in_4bit --zero_stage 2 --dataset x
