from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

MODEL = "meta-llama/Llama-3.1-8B"
tokenizer = AutoTokenizer.from_pretrained(MODEL)
tokenizer.add_special_tokens({"pad_token": "<|pad|>", "additional_special_tokens": ["<|user|>", "<|assistant|>"]})
model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="bfloat16")
model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
SFTTrainer(model, args=SFTConfig(max_length=4096, per_device_train_batch_size=1), processing_class=tokenizer).train()
