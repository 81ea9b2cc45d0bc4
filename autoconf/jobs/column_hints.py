"""Warn about unknown columns that look like misspelled job fields or like settings of the training stack."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

from autoconf.jobs.job import TRAINING_STACK
from autoconf.jobs.queries import MIN_GPUS, Query

_WORD = re.compile(r"[a-z0-9]+")
# Words in the names of settings of transformers, TRL, PEFT, accelerate and axolotl, and the field for each setting.
_MEANT = {
    "bf16": "mixed_precision", "checkpointing": "gradient_checkpointing", "ddp": "sharding", "dtype": "torch_dtype",
    "fsdp": "sharding", "liger": "loss", "micro": "per_device_train_batch_size", "optimizer": "optim",
    "precision": "mixed_precision", "rank": "lora_r",
}  # fmt: skip
# A column with one of these words is about the training stack, but is not one of the fields.
_STACK = {
    "4bit", "8bit", "adapter", "attention", "attn", "deepspeed", "fp16", "fp32", "lora", "offload", "optim", "packing",
    "parallel", "quantization", "quantized", "sharding", "stack", "zero",
}  # fmt: skip
_ALIKE = 0.75  # difflib's ratio; "max_gpu" and "gpus_per_node" reach it, "gpus" and "version" do not
_SHORT = 6  # letters; shorter names would match words like "optimal"


def hints(columns: Iterable[Any], query: Query = MIN_GPUS) -> list[str]:
    """List warnings about ignored columns that look like a misspelled field or like a setting of the training stack.

    Args:
        columns: the columns of a table of jobs.
        query: the query about the jobs; the fields that it answers are never suggested.

    >>> hints(["model_name", "max_gpu", "optimizer", "note"])
    ["column 'max_gpu' is ignored; did you mean max_gpus?", "column 'optimizer' is ignored; did you mean optim?"]
    >>> print(hints(["packing", "lora_alpha"])[0][:70])
    columns 'packing', 'lora_alpha' are ignored: answers hold for the stac
    """
    columns = list(columns)
    unknown = [column for column in columns if isinstance(column, str) and column not in query.all_fields]
    if not unknown:
        return []
    fields = {_letters(field): field for field in query.all_fields if field not in (*columns, *query.answered)}
    sentences, stack = [], []
    for column in unknown:
        meant = _meant(column, fields)
        if meant:
            sentences.append(f"column {column!r} is ignored; did you mean {meant}?")
        elif not {*_STACK, *_MEANT}.isdisjoint(_words(column)):
            stack.append(column)
    if stack:
        are = "columns {} are" if len(stack) > 1 else "column {} is"
        quoted = are.format(", ".join(map(repr, stack)))
        sentences.append(f"{quoted} ignored: answers hold for {TRAINING_STACK}")
    return sentences


def _meant(column: str, fields: dict[str, str]) -> str | None:
    """The field that a column may be meant to be."""
    if _letters(column) in fields:
        return fields[_letters(column)]
    words = _words(column)
    if _STACK.isdisjoint({*words} - {"lora"}):  # lora_rank is a field here, bnb_4bit_compute_dtype is not
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
