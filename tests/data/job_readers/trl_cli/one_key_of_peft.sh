python train.py --model_name_or_path mistralai/Mistral-7B-v0.1 --dataset_name x --max_length 1024 --use_peft_lora True
