nproc_per_node=2
NPROC_PER_NODE=$nproc_per_node \
CUDA_VISIBLE_DEVICES=0,1,2,3 \
swift sft --model Qwen/Qwen2.5-72B-Instruct --tuner_type lora --max_length 2048 --dataset x
