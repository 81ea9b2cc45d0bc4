import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments

USE_4BIT = False
USE_LORA = True
LONG = not USE_4BIT and USE_LORA

if USE_4BIT:
    bnb_config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    optim = "paged_adamw_8bit"
else:
    bnb_config = None
    optim = "adamw_torch"
model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-3B", dtype="bfloat16", quantization_config=bnb_config)
if USE_LORA:
    model = get_peft_model(model, LoraConfig(r=32, target_modules=["q_proj", "o_proj"]))
args = TrainingArguments(per_device_train_batch_size=4 if LONG else 8, bf16=True, optim=optim)
Trainer(model=model, args=args).train()
