deepspeed ./openrlhf/cli/train_sft.py --pretrain Qwen/Qwen2.5-7B --max_len 1024 --micro_train_batch_size 4 --dataset x
