import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, BitsAndBytesConfig, Trainer, TrainingArguments

bnb = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float16)
model = AutoModel.from_pretrained("THUDM/chatglm2-6b", quantization_config=bnb, trust_remote_code=True)
model = get_peft_model(model, LoraConfig(r=8, target_modules=["query_key_value"]))
args = TrainingArguments(output_dir="out", fp16=True, per_device_train_batch_size=4)
Trainer(model=model, args=args, train_dataset=data).train()
