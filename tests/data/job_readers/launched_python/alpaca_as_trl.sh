torchrun --nproc_per_node 4 alpaca.py \
    --model_name_or_path huggyllama/llama-7b \
    --data_path data.json \
    --output_dir out \
    --per_device_train_batch_size 4
