#!/bin/bash
MODEL_PATH=meta-llama/Meta-Llama-3-8B
accelerate launch \
--main_process_port $MASTER_PORT \
--config_file fixtures/accelerate_fsdp_defaults.yaml \
--num_processes=8 \
tuning/sft_trainer.py \
--model_name_or_path $MODEL_PATH \
--training_data_path data.json \
--torch_dtype bfloat16 \
--output_dir out \
--num_train_epochs 5 \
--per_device_train_batch_size 4 \
--gradient_accumulation_steps 4 \
--learning_rate 1e-5 \
--gradient_checkpointing=True \
--response_template "\n### Label:" --dataset_text_field "output"
