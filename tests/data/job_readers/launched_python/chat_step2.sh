#!/bin/bash
deepspeed main.py \
   --data_path Dahoas/rm-static \
   --model_name_or_path facebook/opt-1.3b \
   --num_padding_at_beginning 1 \
   --per_device_train_batch_size 8 \
   --max_seq_len 512 \
   --gradient_accumulation_steps 2 \
   --zero_stage 2 \
   --deepspeed \
   --bf16
