"""python parsed_full.py --model_name_or_path ... --output_dir ..."""
from dataclasses import dataclass, field

import transformers
from transformers import Trainer


@dataclass
class ModelArguments:
    model_name_or_path: str = field(default="EleutherAI/pythia-1b")


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    optim: str = field(default="adamw_torch")
    model_max_length: int = field(default=512)


def main():
    parser = transformers.HfArgumentParser((ModelArguments, TrainingArguments))
    model_args, training_args = parser.parse_args_into_dataclasses()
    model = transformers.AutoModelForCausalLM.from_pretrained(model_args.model_name_or_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        model_args.model_name_or_path, model_max_length=training_args.model_max_length
    )
    trainer = Trainer(model=model, args=training_args, train_dataset=dataset(tokenizer))
    trainer.train()


if __name__ == "__main__":
    main()
