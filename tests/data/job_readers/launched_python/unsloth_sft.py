from dataclasses import dataclass
from typing import List, Optional

import torch
from transformers import HfArgumentParser, TrainingArguments
from trl import SFTTrainer
from unsloth import FastLanguageModel


@dataclass
class Own:
    model_name_or_path: str
    max_seq_length: int = 2048
    lora_r: int = 16
    target_modules: Optional[List[str]] = None

    def __post_init__(self):
        if self.target_modules is None:
            self.target_modules = ["q_proj", "v_proj"]


args, own = HfArgumentParser((TrainingArguments, Own)).parse_args_into_dataclasses()
model, tokenizer = FastLanguageModel.from_pretrained(model_name=own.model_name_or_path, max_seq_length=own.max_seq_length, dtype=torch.bfloat16)
model = FastLanguageModel.get_peft_model(model, r=own.lora_r, target_modules=own.target_modules, use_gradient_checkpointing=True)
trainer = SFTTrainer(model=model, args=args, train_dataset=data, tokenizer=tokenizer, max_seq_length=own.max_seq_length)
trainer.train()
