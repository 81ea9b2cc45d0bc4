import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainingArguments
from trl import SFTTrainer

use_flash_attention = False
bnb_config = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_use_double_quant=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
)
model = AutoModelForCausalLM.from_pretrained(
    "NousResearch/Llama-2-7b-hf", quantization_config=bnb_config, use_cache=False, device_map="auto"
)
peft_config = LoraConfig(lora_alpha=16, lora_dropout=0.1, r=64, bias="none", task_type="CAUSAL_LM")
args = TrainingArguments(
    output_dir="out",
    per_device_train_batch_size=6 if use_flash_attention else 4,
    gradient_accumulation_steps=2,
    gradient_checkpointing=True,
    optim="paged_adamw_32bit",
    bf16=True,
)
model = prepare_model_for_kbit_training(model)
model = get_peft_model(model, peft_config)
trainer = SFTTrainer(model=model, peft_config=peft_config, max_seq_length=2048, packing=True, args=args)
trainer.train()
