deepspeed --module openrlhf.cli.train_dpo --pretrain meta-llama/Meta-Llama-3-8B --micro_train_batch_size 1 --beta 0.1 --dataset x
