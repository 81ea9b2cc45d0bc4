from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainingArguments
from trl import SFTTrainer
from peft import LoraConfig
peft_config = LoraConfig(r=64, target_modules="all-linear")
bnb = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="bfloat16")
model = AutoModelForCausalLM.from_pretrained("NousResearch/Llama-2-7b-chat-hf", quantization_config=bnb, torch_dtype="bfloat16")
args = TrainingArguments(output_dir="./results", bf16=True, per_device_train_batch_size=4, optim="paged_adamw_8bit")
trainer = SFTTrainer(model=model, peft_config=peft_config, dataset_text_field="text", max_seq_length=512, args=args)
