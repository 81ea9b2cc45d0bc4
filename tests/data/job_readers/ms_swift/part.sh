swift sft --model Qwen/Qwen2.5-7B --tuner_type full --freeze_parameters_ratio 0.5 --max_length 2048 --dataset x
