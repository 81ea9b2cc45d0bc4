from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments
import torch

model = AutoModelForCausalLM.from_pretrained(
    "meta-llama/Llama-2-7b-hf",
    quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=True,
                                           bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16),
    torch_dtype=torch.bfloat16,
)
if USE_4BIT:
    model = prepare_model_for_kbit_training(model)
model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
training_args = TrainingArguments(output_dir="o", per_device_train_batch_size=4, gradient_accumulation_steps=4, bf16=True)
trainer = Trainer(model=model, args=training_args, train_dataset=data)
trainer.train()
