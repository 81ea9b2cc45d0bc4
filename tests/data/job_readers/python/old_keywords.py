from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

model = AutoModelForCausalLM.from_pretrained("facebook/opt-350m")
args = SFTConfig(output_dir="/tmp", per_device_train_batch_size=4, bf16=True, gradient_checkpointing=True)
SFTTrainer(model, train_dataset=dataset, dataset_text_field="text", args=args).train()
