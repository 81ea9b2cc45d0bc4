from datasets import load_dataset
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import accuracy_reward

trainer = GRPOTrainer(
    model="Qwen/Qwen2.5-3B-Instruct",
    reward_funcs=accuracy_reward,
    args=GRPOConfig(
        output_dir="grpo",
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        num_generations=8,
        max_completion_length=1024,
        use_vllm=True,
        vllm_mode="server",
        beta=0.04,
        bf16=True,
    ),
    peft_config=LoraConfig(r=32, target_modules="all-linear"),
    train_dataset=load_dataset("trl-lib/DeepMath-103K", split="train"),
)
trainer.train()
