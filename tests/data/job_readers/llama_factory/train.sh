#!/bin/bash
export DISABLE_VERSION_CHECK=1
FORCE_TORCHRUN=1 NNODES=2 NODE_RANK=0 MASTER_ADDR=192.168.0.1 MASTER_PORT=29500 \
  llamafactory-cli train lora_sft.yaml \
    per_device_train_batch_size=4 cutoff_len=8192 'lora_target=q_proj,v_proj'
