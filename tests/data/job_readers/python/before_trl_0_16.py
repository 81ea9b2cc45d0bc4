from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

model = AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-1.7B")
config = SFTConfig(output_dir="sft", max_steps=1000, per_device_train_batch_size=4, learning_rate=5e-5)
SFTTrainer(model=model, args=config, train_dataset=data["train"], tokenizer=tokenizer).train()
