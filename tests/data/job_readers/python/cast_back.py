import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments

args = TrainingArguments(output_dir="o", per_device_train_batch_size=1, gradient_accumulation_steps=16, bf16=True)
quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=True, bnb_4bit_quant_type="nf4")
model = AutoModelForCausalLM.from_pretrained("huggyllama/llama-7b", quantization_config=quantization)
model = prepare_model_for_kbit_training(model)
model = get_peft_model(model, LoraConfig(r=64, target_modules="all-linear", lora_dropout=0.1))
for name, module in model.named_modules():
    if isinstance(module, LoraLayer):
        if args.bf16:
            module = module.to(torch.bfloat16)
    if "norm" in name:
        module = module.to(torch.float32)
    if "lm_head" in name or "embed_tokens" in name:
        if hasattr(module, "weight"):
            if args.bf16 and module.weight.dtype == torch.float32:
                module = module.to(torch.bfloat16)
trainer = Trainer(model=model, tokenizer=tokenizer, args=args, train_dataset=data)
trainer.train()
