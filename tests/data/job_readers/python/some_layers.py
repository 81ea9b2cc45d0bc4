from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

FIRST = 24
trainer = SFTTrainer(
    model="mistralai/Mistral-7B-v0.1",
    args=SFTConfig(max_length=1024, per_device_train_batch_size=1),
    peft_config=LoraConfig(
        r=8, target_modules=["q_proj", "v_proj"], layers_to_transform=list(range(FIRST, 32)), layers_pattern="layers"
    ),
)
trainer.train()
