torchrun --nproc_per_node 2 swift/cli/sft.py --model Qwen/Qwen2.5-7B --tuner_type full --max_length 1024 --dataset x --fsdp fsdp2 --per_device_train_batch_size 2
