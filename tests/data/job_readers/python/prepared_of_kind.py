from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments

base = AutoModelForCausalLM.from_pretrained(
    "EleutherAI/pythia-6.9b", quantization_config=BitsAndBytesConfig(load_in_8bit=True)
)
base = prepare_model_for_kbit_training(base, gradient_checkpointing_kwargs={"use_reentrant": False})
peft_model = get_peft_model(base, LoraConfig(r=4, task_type="CAUSAL_LM"))
train_args = TrainingArguments("runs/pythia", per_device_train_batch_size=8, bf16=True)
Trainer(peft_model, train_args, train_dataset=rows).train()
