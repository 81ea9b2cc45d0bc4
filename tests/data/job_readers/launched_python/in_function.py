from dataclasses import dataclass, field

import torch
import transformers
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer


@dataclass
class ModelArguments:
    model_name_or_path: str = field(default="openbmb/MiniCPM-2B-sft-bf16")


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    optim: str = field(default="adafactor")
    model_max_length: int = field(default=512)
    use_lora: bool = field(default=False)
    qlora: bool = field(default=False)


def load_model(model_path: str, use_lora: bool = True, qlora: bool = False, bf16: bool = False):
    dtype = torch.bfloat16 if bf16 else torch.float32
    kwargs = {"torch_dtype": dtype, "trust_remote_code": True}
    if qlora:
        assert use_lora
        model = AutoModelForCausalLM.from_pretrained(
            model_path, quantization_config=BitsAndBytesConfig(load_in_4bit=True), **kwargs
        )
    else:
        model = AutoModelForCausalLM.from_pretrained(model_path, **kwargs)
    if use_lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=64, target_modules=["q_proj", "v_proj"], lora_dropout=0.1))
    return model


if __name__ == "__main__":
    model_path = "/data/models/MiniCPM"
    parser = transformers.HfArgumentParser((ModelArguments, TrainingArguments))
    model_args, training_args = parser.parse_args_into_dataclasses()
    model = load_model(
        model_path=model_args.model_name_or_path,
        use_lora=training_args.use_lora,
        qlora=training_args.qlora,
        bf16=training_args.bf16,
    )
    trainer = Trainer(model=model, args=training_args)
    trainer.train()
