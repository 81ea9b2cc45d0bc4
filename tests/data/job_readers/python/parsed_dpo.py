from trl import DPOConfig, DPOTrainer, ModelConfig, ScriptArguments, TrlParser, get_peft_config

script_args, training_args, model_args = TrlParser((ScriptArguments, DPOConfig, ModelConfig)).parse_args_and_config()
trainer = DPOTrainer(model_args.model_name_or_path, args=training_args, peft_config=get_peft_config(model_args))
trainer.train()
