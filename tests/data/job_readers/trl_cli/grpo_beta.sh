trl grpo --model_name_or_path Qwen/Qwen2.5-7B --dataset_name a/b --reward_funcs accuracy_reward --beta 0.04
