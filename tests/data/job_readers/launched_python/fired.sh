python finetune_fire.py train --base_model 'huggyllama/llama-7b' --micro_batch_size 8 --num_epochs 3
