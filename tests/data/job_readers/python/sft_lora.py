#!/usr/bin/env python
"""Fine-tunes with LoRA."""
import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

MODEL_ID = "meta-llama/Llama-3.1-8B"
GLOBAL_BATCH, MICRO_BATCH = 64, 2
MAX_LEN = 4 * 1024


def main():
    model = AutoModelForCausalLM.from_pretrained(
        MODEL_ID, torch_dtype=torch.bfloat16, attn_implementation="flash_attention_2", use_cache=False,
    )
    tokenizer = AutoTokenizer.from_pretrained(MODEL_ID)
    peft_config = LoraConfig(
        r=32, lora_alpha=2 * 32, lora_dropout=0.05, bias="none", task_type="CAUSAL_LM",
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    )
    args = SFTConfig(
        output_dir="out",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=64 // (2 * 8),
        max_length=MAX_LEN,
        bf16=True,
        learning_rate=2e-4,
        num_train_epochs=3,
    )
    trainer = SFTTrainer(model=model, args=args, train_dataset=load_dataset("acme/d", split="train"),
                         processing_class=tokenizer, peft_config=peft_config)
    trainer.train()


if __name__ == "__main__":
    main()
