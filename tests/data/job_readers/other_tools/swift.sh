CUDA_VISIBLE_DEVICES=0,1 NPROC_PER_NODE=2 swift sft --model Qwen/Qwen2.5-7B-Instruct --train_type lora --dataset 'AI-ModelScope/alpaca-gpt4-data-zh#500' --max_length 2048
