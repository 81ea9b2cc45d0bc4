import fire
import torch
import transformers
from peft import LoraConfig, get_peft_model, prepare_model_for_int8_training


def train(base_model: str = "huggyllama/llama-13b", micro_batch_size: int = 8, cutoff_len: int = 768):
    model = transformers.AutoModelForCausalLM.from_pretrained(base_model, load_in_8bit=True, torch_dtype=torch.bfloat16)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base_model)

    def tokenize(prompt):
        return tokenizer(prompt, truncation=True, max_length=cutoff_len)

    model = prepare_model_for_int8_training(model)
    model = get_peft_model(model, LoraConfig(r=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    args = transformers.TrainingArguments(
        output_dir="out", per_device_train_batch_size=micro_batch_size, gradient_accumulation_steps=4, bf16=True
    )
    trainer = transformers.Trainer(model=model, args=args, train_dataset=load().map(tokenize))
    trainer.train()


if __name__ == "__main__":
    fire.Fire(train)
