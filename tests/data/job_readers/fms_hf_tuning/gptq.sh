accelerate launch --config_file fixtures/accelerate_fsdp_defaults.yaml -m tuning.sft_trainer --model_name_or_path TheBloke/Llama-2-7B-GPTQ \
  --auto_gptq triton_v2 --peft_method lora --r 16 --target_modules q_proj v_proj --torch_dtype float16 --fp16 True \
  --max_seq_length 2048 --training_data_path data.json --output_dir out
