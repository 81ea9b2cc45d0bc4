from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer


def train(name):
    args = SFTConfig(max_length=2048, per_device_train_batch_size=2, bf16=True)
    trainer = SFTTrainer(name, args=args, peft_config=LoraConfig(r=16, target_modules="all-linear"))
    trainer.train()
    trainer.save_model("adapter")


def merge(name):
    base = AutoModelForCausalLM.from_pretrained(name, dtype="bfloat16")
    PeftModel.from_pretrained(base, "adapter").merge_and_unload().save_pretrained("merged")


NAME = "meta-llama/Llama-3.2-1B"
train(NAME)
merge(NAME)
