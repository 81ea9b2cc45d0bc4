python train.py --model_name_or_path mistralai/Mistral-7B-v0.1 --dataset_name x --max_length 1024 --bf16 True \
  --per_device_train_batch_size 2 --use_peft_lora True --use_4bit_quantization True --use_nested_quant True \
  --bnb_4bit_compute_dtype bfloat16 --bnb_4bit_quant_storage_dtype bfloat16 --lora_target_modules all-linear
