import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainingArguments
from trl import SFTTrainer

bnb = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
model = AutoModelForCausalLM.from_pretrained("meta-llama/Llama-2-7b-hf", quantization_config=bnb, torch_dtype=torch.bfloat16)
model = get_peft_model(model, LoraConfig(r=64))
args = TrainingArguments(output_dir="out", per_device_train_batch_size=4, bf16=True)
SFTTrainer(model=model, dataset_text_field="text", max_seq_length=512, args=args).train()
