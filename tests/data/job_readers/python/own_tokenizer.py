from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

tokenizer = AutoTokenizer.from_pretrained("hfl/chinese-llama-2-7b")
model = AutoModelForCausalLM.from_pretrained("meta-llama/Llama-2-7b-hf", dtype="bfloat16")
model.resize_token_embeddings(len(tokenizer))
SFTTrainer(model, args=SFTConfig(max_length=4096, per_device_train_batch_size=1), processing_class=tokenizer).train()
