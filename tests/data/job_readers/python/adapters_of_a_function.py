from peft import LoraConfig
from trl import SFTConfig, SFTTrainer


def adapters():
    targets = ["q_proj", "k_proj", "v_proj"]
    return LoraConfig(r=32, target_modules=targets)


peft_config = adapters()
args = SFTConfig(per_device_train_batch_size=1, max_length=1024)
SFTTrainer(model="Qwen/Qwen3-8B", args=args, train_dataset=data, peft_config=peft_config).train()
