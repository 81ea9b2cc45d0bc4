from unsloth import FastVisionModel
from trl import SFTConfig, SFTTrainer
model, tokenizer = FastVisionModel.from_pretrained("Qwen/Qwen2.5-VL-7B-Instruct", load_in_4bit=True)
SFTTrainer(model="Qwen/Qwen2.5-7B", args=SFTConfig(max_length=2048, per_device_train_batch_size=2)).train()
