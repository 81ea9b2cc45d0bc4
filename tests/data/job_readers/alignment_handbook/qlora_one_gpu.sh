ACCELERATE_LOG_LEVEL=info accelerate launch --config_file accelerate_configs/ddp.yaml --num_processes=1 scripts/sft.py \
  --config config_qlora.yaml
