from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments

config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
base = AutoModelForCausalLM.from_pretrained("EleutherAI/pythia-2.8b", quantization_config=config)
base = prepare_model_for_kbit_training(base)
base.gradient_checkpointing_enable()  # which replaces what PEFT has just enabled
peft_model = get_peft_model(base, LoraConfig(r=4, task_type="CAUSAL_LM"))
train_args = TrainingArguments("runs/pythia", per_device_train_batch_size=2, bf16=True)
Trainer(peft_model, train_args, train_dataset=rows).train()
