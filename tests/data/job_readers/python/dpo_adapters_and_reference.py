from peft import LoraConfig
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-7B", dtype="bfloat16")
ref = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-7B", dtype="bfloat16")
adapters = LoraConfig(r=8, target_modules="all-linear")
DPOTrainer(model, ref, DPOConfig(per_device_train_batch_size=1), peft_config=adapters).train()
