import torch
from nets.eager_llama import LlamaForCausalLM
from transformers import AutoTokenizer, Trainer, TrainingArguments

tokenizer = AutoTokenizer.from_pretrained("meta-llama/Llama-3.2-1B")
rows = corpus.map(lambda row: tokenizer(row["text"], truncation=True, max_length=256))
model = LlamaForCausalLM.from_pretrained("meta-llama/Llama-3.2-1B", dtype=torch.bfloat16)
Trainer(model, TrainingArguments("o", per_device_train_batch_size=4, bf16=True), train_dataset=rows).train()
