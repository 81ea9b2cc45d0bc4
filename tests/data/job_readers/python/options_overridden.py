import json
from dataclasses import dataclass, replace

from transformers import HfArgumentParser
from trl import SFTConfig, SFTTrainer


@dataclass
class Arguments:
    config_path: str = "run.json"
    batch: int = 2
    length: int = 1024


arguments = HfArgumentParser(Arguments).parse_args_into_dataclasses()[0]
arguments = replace(arguments, **json.load(open(arguments.config_path)))
config = SFTConfig(output_dir="o", per_device_train_batch_size=arguments.batch, max_length=arguments.length, bf16=True)
SFTTrainer("google/gemma-2-2b", args=config, train_dataset=data).train()
