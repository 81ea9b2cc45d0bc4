from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer
from peft import LoraConfig, PeftModel, get_peft_model

LENGTH = 2048
BATCH = 4


def show(model: PeftModel) -> None:
    if isinstance(model, PeftModel):
        model.print_trainable_parameters()


LENGTH = 2048
BATCH = 8
args = SFTConfig(max_length=LENGTH, per_device_train_batch_size=2, bf16=True, output_dir="out")
trainer = SFTTrainer(
    model="Qwen/Qwen2.5-7B",
    args=args,
    peft_config=LoraConfig(r=16, target_modules="all-linear"),
)
show(trainer.model)
trainer.train()
