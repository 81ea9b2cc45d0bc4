from transformers import HfArgumentParser, TrainingArguments

from alignment import SPINTrainer, load

(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
SPINTrainer(load(args), args=args).train()
