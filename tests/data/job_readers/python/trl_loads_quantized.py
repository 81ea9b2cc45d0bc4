import torch
from peft import LoraConfig
from transformers import BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

bnb_config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16)
config = SFTConfig(
    per_device_train_batch_size=2,
    fp16=True,
    bf16=False,
    max_length=512,
    model_init_kwargs={
        "quantization_config": bnb_config,
        "torch_dtype": torch.float16,
        "attn_implementation": "sdpa",
        "device_map": "auto",
    },
)
trainer = SFTTrainer(model="Qwen/Qwen3-8B", args=config, train_dataset=data, peft_config=LoraConfig(r=32))
trainer.train()
