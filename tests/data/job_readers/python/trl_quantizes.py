from peft import LoraConfig
from transformers import BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

args = SFTConfig(per_device_train_batch_size=1, max_length=1024, model_init_kwargs={"dtype": "bfloat16"})
quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
trainer = SFTTrainer(
    model="Qwen/Qwen3-14B", args=args, train_dataset=data, quantization_config=quantization, peft_config=LoraConfig(r=32)
)
trainer.train()
