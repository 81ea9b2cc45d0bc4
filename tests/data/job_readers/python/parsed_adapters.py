from dataclasses import dataclass

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, HfArgumentParser, Trainer, TrainingArguments


@dataclass
class Arguments:
    model: str
    use_lora: bool = False


arguments, training = HfArgumentParser((Arguments, TrainingArguments)).parse_args_into_dataclasses()
model = AutoModelForCausalLM.from_pretrained(arguments.model, torch_dtype=torch.bfloat16, attn_implementation="sdpa")
if arguments.use_lora:
    model = get_peft_model(model, LoraConfig(r=24, lora_dropout=0.1, target_modules=["q_proj", "v_proj"]))
Trainer(model=model, args=training, train_dataset=data).train()
