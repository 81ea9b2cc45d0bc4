ACCELERATE_LOG_LEVEL=info accelerate launch --config_file accelerate_configs/zero3.yaml scripts/sft.py --config config_full.yaml
