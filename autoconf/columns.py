"""Columns of a table that are no fields of a job: those that somebody may believe to count."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

from autoconf.workload import TRAINING_STACK, Workload

_WORD = re.compile(r"[a-z0-9]+")
# A column with one of these words tells how a job trains, as transformers, TRL, PEFT, accelerate and axolotl name it.
_STACK = {
    "4bit", "8bit", "adapter", "attention", "attn", "bf16", "checkpointing", "ddp", "deepspeed", "dtype", "fp16",
    "fp32", "fsdp", "liger", "lora", "offload", "optim", "optimizer", "packing", "parallel", "precision",
    "quantization", "quantized", "rank", "sharding", "stack", "zero",
}  # fmt: skip
_ALIKE = 0.75  # of difflib's ratio: as "max_gpu" and "gpus_per_node" are, but not "gpus" or "version"


def doubts(columns: Iterable[Any]) -> list[str]:
    """What to say of columns that are ignored, but look like a field misspelt or like a setting of the training stack.

    >>> doubts(["model_name", "max_gpu", "note"])
    ["column 'max_gpu' is ignored: is max_gpus meant?"]
    >>> print(doubts(["lora_rank", "optimizer"])[0][:70])
    columns 'lora_rank', 'optimizer' are ignored: answers hold for supervi
    """
    columns = list(columns)
    fields = {_letters(field): field for field in Workload.model_fields if field not in columns}
    sentences, stack = [], []
    for column in columns:
        if not isinstance(column, str) or column in Workload.model_fields:
            continue
        meant = difflib.get_close_matches(_letters(column), fields, n=1, cutoff=_ALIKE)
        if meant:
            sentences.append(f"column {column!r} is ignored: is {fields[meant[0]]} meant?")
        elif not _STACK.isdisjoint(_words(column)):
            stack.append(column)
    if stack:
        are = "columns {} are" if len(stack) > 1 else "column {} is"
        quoted = are.format(", ".join(map(repr, stack)))
        sentences.append(f"{quoted} ignored: answers hold for {TRAINING_STACK}")
    return sentences


def _words(column: str) -> list[str]:
    return _WORD.findall(column.lower())


def _letters(column: str) -> str:
    return "".join(_words(column))
