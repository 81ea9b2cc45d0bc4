from datasets import load_dataset
from peft import LoraConfig
from trl import RewardConfig, RewardTrainer

trainer = RewardTrainer(
    model="Qwen/Qwen3-0.6B",
    args=RewardConfig(output_dir="out", per_device_train_batch_size=4, max_length=2048, learning_rate=1e-4),
    train_dataset=load_dataset("trl-lib/ultrafeedback_binarized", split="train"),
    peft_config=LoraConfig(r=32, lora_alpha=16, target_modules=["q_proj", "v_proj"], modules_to_save=None),
)
trainer.train()
