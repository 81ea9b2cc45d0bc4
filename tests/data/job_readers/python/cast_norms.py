import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-8B", torch_dtype=torch.bfloat16)
for weight in model.parameters():
    weight.requires_grad = False
    if weight.ndim == 1:
        weight.data = weight.data.to(torch.float32)
model = get_peft_model(model, LoraConfig(r=16, target_modules=["q_proj", "v_proj"]))
for name, weight in model.named_parameters():
    if weight.requires_grad:
        weight.data = weight.data.float()
args = TrainingArguments(output_dir="out", per_device_train_batch_size=2, bf16=True, gradient_checkpointing=True)
Trainer(model=model, tokenizer=tokenizer, args=args, train_dataset=data).train()
