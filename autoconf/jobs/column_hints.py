"""Columns of a table that are no fields of a job: those that somebody may believe to count."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

from autoconf.jobs.job import TRAINING_STACK, Workload
from autoconf.jobs.queries import MIN_GPUS, Query

_WORD = re.compile(r"[a-z0-9]+")
# Words of transformers, TRL, PEFT, accelerate and axolotl for what a field says here under another name.
_MEANT = {
    "bf16": "mixed_precision", "checkpointing": "gradient_checkpointing", "ddp": "sharding", "dtype": "torch_dtype",
    "fsdp": "sharding", "liger": "loss", "micro": "per_device_train_batch_size", "optimizer": "optim",
    "precision": "mixed_precision", "rank": "lora_r",
}  # fmt: skip
# A column with one of these words tells how a job trains, and no field can.
_STACK = {
    "4bit", "8bit", "adapter", "attention", "attn", "deepspeed", "fp16", "fp32", "lora", "offload", "optim", "packing",
    "parallel", "quantization", "quantized", "sharding", "stack", "zero",
}  # fmt: skip
_ALIKE = 0.75  # of difflib's ratio: as "max_gpu" and "gpus_per_node" are, but not "gpus" or "version"
_SHORT = 6  # letters; words like "optimal" would be as near to shorter names


def doubts(columns: Iterable[Any], question: Query = MIN_GPUS) -> list[str]:
    """What to say of columns that are ignored, but look like a field misspelt or like a setting of the training stack.

    Args:
        columns: of a table of jobs.
        question: what is asked of the jobs: a field that it asks for is never meant.

    >>> doubts(["model_name", "max_gpu", "optimizer", "note"])
    ["column 'max_gpu' is ignored: is max_gpus meant?", "column 'optimizer' is ignored: is optim meant?"]
    >>> print(doubts(["packing", "lora_alpha"])[0][:70])
    columns 'packing', 'lora_alpha' are ignored: answers hold for the stac
    """
    columns = list(columns)
    known = (*Workload.model_fields, *question.beside)
    fields = {_letters(field): field for field in known if field not in (*columns, *question.asked)}
    sentences, stack = [], []
    for column in columns:
        if not isinstance(column, str) or column in known:
            continue
        meant = _meant(column, fields)
        if meant:
            sentences.append(f"column {column!r} is ignored: is {meant} meant?")
        elif not {*_STACK, *_MEANT}.isdisjoint(_words(column)):
            stack.append(column)
    if stack:
        are = "columns {} are" if len(stack) > 1 else "column {} is"
        quoted = are.format(", ".join(map(repr, stack)))
        sentences.append(f"{quoted} ignored: answers hold for {TRAINING_STACK}")
    return sentences


def _meant(column: str, fields: dict[str, str]) -> str | None:
    """The field that a column may stand for."""
    if _letters(column) in fields:
        return fields[_letters(column)]
    words = _words(column)
    if _STACK.isdisjoint({*words} - {"lora"}):  # of lora_rank a field is known, of bnb_4bit_compute_dtype none is
        for word in words:
            if _MEANT.get(word) in fields.values():
                return _MEANT[word]
    alike = difflib.get_close_matches(
        _letters(column), [name for name in fields if len(name) >= _SHORT], n=1, cutoff=_ALIKE
    )
    return fields[alike[0]] if alike else None


def _words(column: str) -> list[str]:
    return _WORD.findall(column.lower())


def _letters(column: str) -> str:
    return "".join(_words(column))
