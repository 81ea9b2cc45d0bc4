swift sft --model meta-llama/Llama-3.1-8B --dataset data/train.jsonl --max_length 2048
