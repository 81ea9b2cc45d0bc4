import torch
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-3B", torch_dtype=torch.bfloat16)
SFTTrainer(model, args=SFTConfig(max_length=1024, eval_strategy="no", assistant_only_loss=True, gradient_checkpointing=True)).train()
