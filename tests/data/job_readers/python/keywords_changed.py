import torch
from transformers import AutoConfig, AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

model_id = "google/gemma-2-9b"
model_kwargs = dict(attn_implementation="eager", torch_dtype=torch.float32)
kwargs = {"torch_dtype": torch.bfloat16, "attn_implementation": "flash_attention_2", "use_cache": False}
kwargs["torch_dtype"] = torch.float32
config = AutoConfig.from_pretrained(model_id)
model = AutoModelForCausalLM.from_pretrained(model_id, config=config, **kwargs)
SFTTrainer(model, args=SFTConfig(max_length=1024, per_device_train_batch_size=2)).train()
