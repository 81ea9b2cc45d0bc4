deepspeed --module openrlhf.cli.train_sft --pretrain meta-llama/Llama-2-7b-hf --dataset x
