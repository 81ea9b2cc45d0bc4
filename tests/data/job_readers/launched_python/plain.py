from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

trainer = SFTTrainer(
    "ibm-granite/granite-3.1-8b-base",
    args=SFTConfig(max_length=8192, per_device_train_batch_size=1, gradient_accumulation_steps=8),
    peft_config=LoraConfig(r=64, target_modules="all-linear"),
)
trainer.train()
