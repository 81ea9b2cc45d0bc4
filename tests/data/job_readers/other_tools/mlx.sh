python -m mlx_lm.lora --model m --train
