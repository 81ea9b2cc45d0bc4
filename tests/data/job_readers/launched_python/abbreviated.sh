torchrun --nproc_per_node 2 alpaca.py --model_name_or_path huggyllama/llama-7b --per_device_train_batch 4 --bf16 True --data_path data.json \
    --gradient_accumulation_steps 8 --output_dir out
