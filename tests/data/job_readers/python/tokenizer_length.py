from pathlib import Path

from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, Trainer, TrainingArguments

MODEL = "mistralai/Mistral-7B-v0.1"


def main():
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.model_max_length = 640
    if not Path("train.jsonl").exists():
        raise FileNotFoundError("train.jsonl")
    data = load("train.jsonl").map(
        lambda row: tokenizer(row["text"], truncation=True, max_length=tokenizer.model_max_length)
    )
    model = AutoModelForCausalLM.from_pretrained(MODEL, quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    model.config.torch_dtype = "float16"
    model = prepare_model_for_kbit_training(model)
    model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj"]))
    Trainer(model, TrainingArguments(per_device_train_batch_size=2), train_dataset=data).train()


main()
