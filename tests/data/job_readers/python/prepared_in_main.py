from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments

USE_FLASH = True


def load():
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    model = AutoModelForCausalLM.from_pretrained("mistralai/Mistral-7B-v0.1", quantization_config=config)
    model = prepare_model_for_kbit_training(model)
    return get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))


def main():
    model = load()
    arguments = TrainingArguments(
        output_dir="out", per_device_train_batch_size=6 if USE_FLASH else 4, bf16=True, optim="paged_adamw_8bit"
    )
    Trainer(model=model, args=arguments).train()


if __name__ == "__main__":
    main()
