from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, GPTQConfig, Trainer, TrainingArguments

model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-7B", quantization_config=GPTQConfig(bits=8, disable_exllama=True))
model = prepare_model_for_kbit_training(model)
model = get_peft_model(model, LoraConfig(r=64, target_modules=["q_proj", "v_proj"], lora_dropout=0.05))
args = TrainingArguments(output_dir="o", per_device_train_batch_size=2, fp16=True)
Trainer(model=model, tokenizer=tokenizer, args=args, train_dataset=data).train()
