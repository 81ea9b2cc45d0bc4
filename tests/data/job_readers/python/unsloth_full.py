from unsloth import FastLanguageModel
from trl import SFTConfig, SFTTrainer
model, tok = FastLanguageModel.from_pretrained("Qwen/Qwen2.5-1.5B", max_seq_length=4096, load_in_4bit=False, full_finetuning=True)
trainer = SFTTrainer(model=model, args=SFTConfig(per_device_train_batch_size=1, gradient_accumulation_steps=16, bf16=True, gradient_checkpointing=True))
trainer.train()
