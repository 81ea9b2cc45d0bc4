#!/bin/bash
torchrun --nproc_per_node 8 --nnodes 1 Megatron-LLM/finetune.py --tensor_model_parallel_size 8 --micro_batch_size 1 \
    --global_batch_size 12 --model_name llama2 --bf16 --seq_length 4096 --load checkpoints/llama2-7b
