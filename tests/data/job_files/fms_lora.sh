#!/bin/bash
# After https://github.com/foundation-model-stack/fms-hf-tuning/blob/v3.1.0/docs/training.md, Multiple GPUs with FSDP
export MASTER_PORT=1234
MODEL_PATH=meta-llama/Llama-3.1-8B  # it isn't downloaded here
mkdir -p out && accelerate launch \
  --config_file fixtures/accelerate_fsdp1.yaml \
  --num_processes=8 \
  --main_process_port=$MASTER_PORT \
  -m tuning.sft_trainer \
  --model_name_or_path ${MODEL_PATH} \
  --training_data_path twitter_complaints.json \
  --torch_dtype bfloat16 \
  --output_dir out \
  --per_device_train_batch_size 4 \
  --gradient_accumulation_steps 4 \
  --max_seq_length 4096 \
  --gradient_checkpointing True \
  --peft_method lora --r 8 --target_modules q_proj k_proj v_proj o_proj \
  --learning_rate 1e-5 \
  --response_template "\n### Response:"
