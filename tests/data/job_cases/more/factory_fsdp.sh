accelerate launch --use_fsdp --fsdp_version 2 --mixed_precision bf16 --num_processes 4 src/train.py factory_full.yaml
