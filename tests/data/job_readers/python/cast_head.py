import torch
from torch import nn
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments


class CastOutputToFloat(nn.Sequential):
    def forward(self, x):
        return super().forward(x).to(torch.float32)


model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-8B", torch_dtype=torch.bfloat16)
model.lm_head = CastOutputToFloat(model.lm_head)
args = TrainingArguments(output_dir="out", per_device_train_batch_size=2, bf16=True, gradient_checkpointing=True)
Trainer(model=model, tokenizer=tokenizer, args=args, train_dataset=data).train()
