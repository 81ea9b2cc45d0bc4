#!/bin/bash
tune run --nnodes 1 --nproc_per_node 4 lora_finetune_distributed --config lora_8b.yaml batch_size=4 model.lora_rank=32 \
  gradient_accumulation_steps=2 tokenizer.max_seq_len=1024 enable_activation_checkpointing=False
