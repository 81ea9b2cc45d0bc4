#!/usr/bin/env bash
# torchrun instead of accelerate, as axolotl's documentation has it
axolotl train qlora.yml --launcher torchrun --lora-r 16 -- --nproc_per_node=4 --nnodes=2 \
    --rdzv_id=100 --rdzv_backend=c10d --rdzv_endpoint=$HEAD_NODE:29400
