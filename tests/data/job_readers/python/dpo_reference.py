import torch
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

name = "meta-llama/Llama-3.1-8B-Instruct"
model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16)
ref_model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16)
args = DPOConfig("out", per_device_train_batch_size=2, gradient_accumulation_steps=16, max_length=1536, beta=0.1)
trainer = DPOTrainer(model, ref_model, args=args, train_dataset=None)
trainer.train()
