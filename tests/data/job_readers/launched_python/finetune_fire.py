import fire
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments


def train(
    base_model: str = "",
    micro_batch_size: int = 4,
    cutoff_len: int = 256,
    lora_r: int = 8,
    lora_target_modules: list = ["q_proj", "v_proj"],
):
    model = AutoModelForCausalLM.from_pretrained(base_model, torch_dtype="float16")
    model = get_peft_model(model, LoraConfig(r=lora_r, target_modules=lora_target_modules, lora_dropout=0.05))
    args = TrainingArguments(
        per_device_train_batch_size=micro_batch_size,
        gradient_accumulation_steps=128 // micro_batch_size,
        fp16=True,
        optim="adamw_torch",
        evaluation_strategy="steps",
    )
    Trainer(model=model, args=args).train()


if __name__ == "__main__":
    fire.Fire(train)
