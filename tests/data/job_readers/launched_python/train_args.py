import argparse

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer


def parse_args():
    parser = argparse.ArgumentParser(description="Fine-tune a model")
    parser.add_argument("--model", type=str, required=True)
    parser.add_argument("--max-len", type=int, default=1024)
    parser.add_argument("--bs", type=int, default=8, help="per device")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--quantize", action="store_true")
    parser.add_argument("--no-checkpointing", dest="checkpointing", action="store_false")
    return parser.parse_args()


def main():
    args = parse_args()
    bnb_config = None
    if args.quantize:
        bnb_config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16, quantization_config=bnb_config)
    config = SFTConfig(
        output_dir=f"out/{args.model}",
        per_device_train_batch_size=args.bs,
        max_length=args.max_len,
        gradient_checkpointing=args.checkpointing,
        bf16=True,
    )
    peft_config = LoraConfig(r=args.rank, target_modules="all-linear")
    SFTTrainer(model=model, args=config, peft_config=peft_config).train()


if __name__ == "__main__":
    main()
