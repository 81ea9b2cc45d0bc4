swift sft --model Qwen/Qwen3-4B --tuner_type full --task_type generative_reranker --loss_type listwise_generative_reranker --max_length 4096 --dataset x
