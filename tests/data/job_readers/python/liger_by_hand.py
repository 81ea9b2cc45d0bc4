import torch
from liger_kernel.transformers import apply_liger_kernel_to_qwen3
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-8B", torch_dtype=torch.bfloat16)
apply_liger_kernel_to_qwen3(model=model)
args = TrainingArguments(output_dir="out", per_device_train_batch_size=2, bf16=True, gradient_checkpointing=True)
Trainer(model=model, tokenizer=tokenizer, args=args, train_dataset=data).train()
