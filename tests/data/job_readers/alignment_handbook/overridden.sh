accelerate launch --config_file=accelerate_configs/zero3.yaml --num_processes=4 scripts/sft.py --config=config_full.yaml \
  --per_device_train_batch_size=2 --gradient_accumulation_steps=8 --max_seq_length=4096
