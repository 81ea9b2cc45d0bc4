from peft import LoraConfig
from transformers import AutoModelForCausalLM, TrainingArguments
from trl import DPOTrainer

model = AutoModelForCausalLM.from_pretrained("HuggingFaceH4/zephyr-7b-sft", torch_dtype="bfloat16")
args = TrainingArguments(output_dir="dpo", per_device_train_batch_size=4, gradient_checkpointing=True, bf16=True)
trainer = DPOTrainer(
    model,
    ref_model=None,
    peft_config=LoraConfig(r=128, target_modules="all-linear"),
    args=args,
    max_length=1536,
    max_prompt_length=1024,
    beta=0.1,
    loss_type="sigmoid",
)
trainer.train()
