from unsloth import FastLanguageModel
from trl import GRPOConfig, GRPOTrainer
model, tok = FastLanguageModel.from_pretrained("Qwen/Qwen2.5-1.5B", max_seq_length=1024, fast_inference=True)
training_args = GRPOConfig(num_generations=8, max_completion_length=512)
GRPOTrainer(model=model, args=training_args, reward_funcs=[f]).train()
