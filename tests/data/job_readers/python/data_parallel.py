import torch
from torch import nn
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-8B", torch_dtype=torch.bfloat16)
if torch.cuda.device_count() > 1:
    model = nn.DataParallel(model)
args = TrainingArguments(output_dir="out", per_device_train_batch_size=2, bf16=True, gradient_checkpointing=True)
Trainer(model=model, tokenizer=tokenizer, args=args, train_dataset=data).train()
