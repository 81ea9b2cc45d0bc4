from peft import LoraConfig
from trl import SFTTrainer

trainer = SFTTrainer(
    "meta-llama/Llama-2-7b-hf",
    train_dataset=load("pairs.jsonl"),
    dataset_text_field="text",
    max_seq_length=1024,
    model_init_kwargs={"load_in_4bit": True, "torch_dtype": "bfloat16"},
    args=TrainingArguments(output_dir="out", per_device_train_batch_size=4, bf16=True),
    peft_config=LoraConfig(r=16, task_type="CAUSAL_LM"),
)
trainer.train()
