from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

trainer = SFTTrainer(
    model="Qwen/Qwen2.5-7B-Instruct",
    train_dataset=load("pairs.jsonl"),
    args=SFTConfig(
        output_dir="out",
        model_init_kwargs=dict(dtype="bfloat16", attn_implementation="flash_attention_2"),
        per_device_train_batch_size=4,
        max_length=2048,
    ),
    peft_config=LoraConfig(r=32, target_modules="all-linear", task_type="CAUSAL_LM"),
)
trainer.train()
