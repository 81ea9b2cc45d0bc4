from transformers import Qwen2_5_VLForConditionalGeneration
from trl import SFTConfig, SFTTrainer

model = Qwen2_5_VLForConditionalGeneration.from_pretrained("Qwen/Qwen2.5-VL-3B-Instruct")
config = SFTConfig(output_dir="seen", per_device_train_batch_size=1, max_length=1024)
SFTTrainer(model, config, train_dataset=pictures).train()
