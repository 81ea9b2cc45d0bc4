NPROC_PER_NODE=8 megatron sft --load Qwen2.5-7B-mcore --tensor_model_parallel_size 2 --micro_batch_size 1 --max_length 2048
