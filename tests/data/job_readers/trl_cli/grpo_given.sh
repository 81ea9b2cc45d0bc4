accelerate launch --config_file zero3.yaml --num_processes 8 grpo.py --model_name_or_path Qwen/Qwen2.5-7B-Instruct --dataset_name trl-lib/DeepMath-103K \
  --per_device_train_batch_size 8 --gradient_accumulation_steps 2 --num_generations 16 --max_completion_length 4096 --use_vllm --vllm_mode server \
  --learning_rate 1e-6 --reward_funcs accuracy_reward
