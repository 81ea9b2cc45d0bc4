FORCE_TORCHRUN=1 NNODES=2 llamafactory-cli train factory.yaml cutoff_len=8192 lora_rank=64
