deepspeed --module openrlhf.cli.train_sft --pretrain mistralai/Mixtral-8x7B-v0.1 --max_len 2048 --lora_rank 64 --aux_loss_coef 0.001 --dataset x
