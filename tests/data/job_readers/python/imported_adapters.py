from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from settings import ADAPTERS

trainer = SFTTrainer(
    model="Qwen/Qwen3-4B",
    args=SFTConfig(per_device_train_batch_size=2, gradient_accumulation_steps=4, max_length=2048, eval_strategy="epoch"),
    train_dataset=data,
    eval_dataset=other,
    peft_config=ADAPTERS,
)
trainer.train()
