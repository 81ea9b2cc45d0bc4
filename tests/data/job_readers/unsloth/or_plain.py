import os

from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

NAME, LENGTH = "Qwen/Qwen2.5-7B-Instruct", 4096


def load():
    if os.path.exists("/opt/unsloth"):
        from unsloth import FastLanguageModel

        model, tokenizer = FastLanguageModel.from_pretrained(NAME, max_seq_length=LENGTH, load_in_4bit=True)
        return FastLanguageModel.get_peft_model(model, r=16, lora_dropout=0)
    model = AutoModelForCausalLM.from_pretrained(NAME, torch_dtype="bfloat16")
    return get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))


trainer = SFTTrainer(
    model=load(),
    train_dataset="pairs.jsonl",
    args=SFTConfig(per_device_train_batch_size=2, max_length=LENGTH, bf16=True, optim="adamw_8bit", output_dir="out"),
)
trainer.train()
