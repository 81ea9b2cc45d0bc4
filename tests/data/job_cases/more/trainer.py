from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
base = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-7B", dtype="bfloat16")
model = get_peft_model(base, LoraConfig(r=32, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]))
args = TrainingArguments(
    output_dir="o", per_device_train_batch_size=4, gradient_accumulation_steps=2, bf16=True, gradient_checkpointing=True,
)
Trainer(model=model, args=args, train_dataset=None).train()
