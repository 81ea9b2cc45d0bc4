from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from settings import LOADING

config = SFTConfig(per_device_train_batch_size=2, max_length=512, model_init_kwargs=LOADING)
trainer = SFTTrainer(model="Qwen/Qwen3-8B", args=config, train_dataset=data, peft_config=LoraConfig(r=32))
trainer.train()
