accelerate launch ( --model_name_or_path m
