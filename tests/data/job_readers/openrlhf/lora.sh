deepspeed --module openrlhf.cli.train_sft --pretrain mistralai/Mixtral-8x7B-v0.1 --max_len 2048 --micro_train_batch_size 4 \
   --zero_stage 3 --lora_rank 64 --lora_alpha 64 --aux_loss_coef 0 --bf16 --gradient_checkpointing --dataset x
