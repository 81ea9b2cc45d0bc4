from trl import SFTConfig, SFTTrainer
from unsloth import FastLanguageModel

model, tokenizer = FastLanguageModel.from_pretrained("unsloth/Qwen3-8B", max_seq_length=65536, load_in_4bit=True, unsloth_tiled_mlp=True)
model = FastLanguageModel.get_peft_model(model, r=16)
SFTTrainer(model=model, tokenizer=tokenizer, train_dataset=d, args=SFTConfig(output_dir="o", per_device_train_batch_size=1)).train()
