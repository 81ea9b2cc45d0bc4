from datasets import load_dataset
from trl import SFTConfig, SFTTrainer


def fit(subject):
    config = SFTConfig(output_dir=f"of-{subject}", per_device_train_batch_size=2, max_length=512, bf16=True)
    SFTTrainer("Qwen/Qwen2.5-0.5B", config, train_dataset=load_dataset("json", data_files=f"{subject}.json")).train()


for subject in ("law", "physics", "poetry"):
    fit(subject)
