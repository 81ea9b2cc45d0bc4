from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
import torch

ds_config = {
    "bf16": {"enabled": "auto"},
    "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto", "overlap_comm": False},
    "train_micro_batch_size_per_gpu": "auto",
}
model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-7B", dtype=torch.bfloat16)
args = TrainingArguments(output_dir="o", bf16=True, per_device_train_batch_size=1, gradient_accumulation_steps=16,
                         gradient_checkpointing=True, deepspeed=ds_config)
trainer = Trainer(model=model, args=args, train_dataset=ds)
trainer.train()
