from transformers import AutoModelForCausalLM, TrainingArguments
from peft import LoraConfig
from trl import SFTTrainer
import torch

model = AutoModelForCausalLM.from_pretrained("mistralai/Mistral-7B-v0.1", torch_dtype=torch.bfloat16, device_map="auto")
model.gradient_checkpointing_enable()
lora = LoraConfig(r=16, lora_alpha=16, target_modules=["q_proj", "v_proj"], lora_dropout=0.05)
training_arguments = TrainingArguments(
    "results", per_device_train_batch_size=4, gradient_accumulation_steps=2, bf16=True, optim="adamw_torch",
)
trainer = SFTTrainer(
    model=model, train_dataset=dataset, peft_config=lora, dataset_text_field="text", max_seq_length=1024,
    tokenizer=tokenizer, args=training_arguments, packing=False,
)
trainer.train()
trainer.model.save_pretrained("adapter")
