from dataclasses import dataclass, field
from typing import Optional

from transformers import HfArgumentParser, TrainingArguments
from trl import SFTTrainer


@dataclass
class ScriptArguments:
    model_name: Optional[str] = field(default="facebook/opt-350m")
    per_device_train_batch_size: Optional[int] = field(default=2)
    seq_length: Optional[int] = field(default=512)
    gradient_checkpointing: Optional[bool] = field(default=False)


parser = HfArgumentParser(ScriptArguments)
script_args: ScriptArguments = parser.parse_args_into_dataclasses()[0]
training_args = TrainingArguments(
    output_dir="out",
    per_device_train_batch_size=script_args.per_device_train_batch_size,
    gradient_checkpointing=script_args.gradient_checkpointing,
    bf16=True,
    warmup_ratio=0.03,
    optim="adamw_torch",
)
trainer = SFTTrainer(
    model=script_args.model_name, args=training_args, max_seq_length=script_args.seq_length, train_dataset=data
)
trainer.train()
