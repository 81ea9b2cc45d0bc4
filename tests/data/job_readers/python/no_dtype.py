from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

model = AutoModelForCausalLM.from_pretrained("mistralai/Mistral-7B-v0.1")
SFTTrainer(model=model, args=SFTConfig(per_device_train_batch_size=2, max_length=1024)).train()
