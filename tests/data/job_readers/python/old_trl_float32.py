import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainingArguments
from trl import SFTTrainer

bnb = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
model = AutoModelForCausalLM.from_pretrained("meta-llama/Llama-2-7b-hf", quantization_config=bnb, torch_dtype=torch.float16)
args = TrainingArguments(output_dir="out", per_device_train_batch_size=4, optim="paged_adamw_32bit", bf16=False, fp16=False)
SFTTrainer(model=model, peft_config=LoraConfig(r=64), dataset_text_field="text", max_seq_length=512, args=args).train()
