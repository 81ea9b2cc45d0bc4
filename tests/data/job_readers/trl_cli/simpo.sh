accelerate launch scripts/run_simpo.py --model_name_or_path meta-llama/Meta-Llama-3-8B-Instruct --dataset_name acme/pairs --beta 2.5 --per_device_train_batch_size 2
