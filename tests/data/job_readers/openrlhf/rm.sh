deepspeed --module openrlhf.cli.train_rm --pretrain meta-llama/Meta-Llama-3-8B --dataset x
