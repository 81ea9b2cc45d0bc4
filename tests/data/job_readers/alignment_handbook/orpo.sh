accelerate launch --config_file accelerate_configs/zero3.yaml scripts/orpo.py --config orpo.yaml
