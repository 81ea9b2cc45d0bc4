import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

model = AutoModelForCausalLM.from_pretrained("facebook/opt-6.7b", dtype=torch.float16)
for param in model.parameters():
    param.requires_grad = False  # freeze the model - train adapters later
    if param.ndim == 1:
        param.data = param.data.to(torch.float32)  # cast the small parameters (e.g. layernorm) to fp32
model.gradient_checkpointing_enable()  # reduce number of stored activations
model.enable_input_require_grads()


def make_inputs_require_grad(module, inputs, output):
    output.requires_grad_(True)


model.get_input_embeddings().register_forward_hook(make_inputs_require_grad)
model = get_peft_model(model, LoraConfig(r=16, target_modules=["q_proj", "v_proj"], lora_dropout=0.05, task_type="CAUSAL_LM"))
args = TrainingArguments(per_device_train_batch_size=4, gradient_accumulation_steps=4, max_steps=200, fp16=True)
trainer = Trainer(model=model, args=args)
trainer.train()
