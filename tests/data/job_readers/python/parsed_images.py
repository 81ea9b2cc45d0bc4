from transformers import AutoModelForImageTextToText
from trl import ModelConfig, ScriptArguments, SFTConfig, SFTTrainer, TrlParser

script_args, training_args, model_args = TrlParser((ScriptArguments, SFTConfig, ModelConfig)).parse_args_and_config()
model = AutoModelForImageTextToText.from_pretrained(model_args.model_name_or_path)
SFTTrainer(model, args=training_args, train_dataset=data).train()
