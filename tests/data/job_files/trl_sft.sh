# After https://github.com/huggingface/trl/blob/v1.9.0/docs/source/clis.md
trl sft \
  --config trl_lora.yaml \
  --accelerate_config accelerate_fsdp2.yaml \
  --num_processes 4 \
  --max-length 4096 --no_gradient_checkpointing --eos_token '<|im_end|>'
