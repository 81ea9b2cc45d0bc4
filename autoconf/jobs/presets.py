"""Presets of training stacks, each setting with its source, and the training stack of a job.

The table is ``stacks.yaml``. A preset's settings hold unless the job says otherwise.
"""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml  # here, and not where it is needed: a process that is forked during an import would wait for ever
from pydantic import BaseModel, ConfigDict, ValidationError

from autoconf.jobs.names import key
from autoconf.jobs.stack import Stack

STACKS = Path(__file__).with_name("stacks.yaml")
# The settings that a job may state itself; ``Stack`` has others, which come with a preset, the method or accumulation.
SETTINGS = (
    "optim", "torch_dtype", "adapter_dtype", "mixed_precision", "gradient_checkpointing", "loss", "sharding", "lora_r",
    "lora_targets",
)  # fmt: skip
_OF_ADAPTERS = ("adapter_dtype", "lora_r", "lora_dropout", "lora_targets", "shard_adapters")


class _Typed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Setting(_Typed):
    """A setting of a stack, and its source."""

    value: Any
    source: str


class Case(_Typed):
    """Settings of a preset that hold where the method, or another setting, is as said."""

    when: dict[str, Any]
    settings: dict[str, Setting]


class Preset(_Typed):
    """A stack by name, as ``stacks.yaml`` has it."""

    description: str
    settings: dict[str, Setting]
    cases: tuple[Case, ...] = ()
    chunked: Literal["chunked", "chunked_nll"] = "chunked"  # which of the two a chunked loss is here

    def values(self, method: str, given: dict[str, Any]) -> dict[str, Any]:
        """The settings for a method, under those that a job gives itself."""
        values = {name: setting.value for name, setting in self.settings.items()}
        for case in self.cases:
            if case.when.items() <= {"method": method, **values, **given}.items():
                values |= {name: setting.value for name, setting in case.settings.items()}
        return values


@cache
def presets() -> dict[str, Preset]:
    """The presets by their names.

    >>> list(presets())
    ['reference', 'trl', 'fms-hf-tuning', 'llama-factory']
    >>> presets()["trl"].settings["loss"].value
    'chunked'
    """
    table = yaml.safe_load(STACKS.read_text(encoding="utf-8"))
    return {name: Preset.model_validate(preset) for name, preset in table.items()}


@lru_cache(maxsize=4096)
def training_stack(method: str, accumulating: bool, stack: str, *settings: Any) -> Stack:
    """The stack that a job trains with.

    Args:
        method: as the job has it; ``qlora`` quantizes, ``full`` has no adapters.
        accumulating: whether an optimizer step takes several micro-batches.
        stack: a preset's name.
        settings: the job's own, in the order of ``SETTINGS``; ``None`` is what the preset says.

    Raises:
        ValueError: settings exclude each other, or the method; the message names both.

    >>> training_stack("full", True, "reference", *[None] * len(SETTINGS)) == Stack()
    True
    >>> training_stack("lora", False, "trl", "sgd", *[None] * (len(SETTINGS) - 1)).optim
    'sgd'
    """
    method, given = key(method), _given(settings)
    values = {**presets()[stack].values(method, given), **given}
    _check(method, given, values, stack)
    if method == "full":
        values = {name: value for name, value in values.items() if name not in _OF_ADAPTERS}
    elif values["torch_dtype"] == "float32":
        values["adapter_dtype"] = "float32"  # PEFT makes adapters in the dtype of their layer, or in float32
    if values["loss"] == "chunked":
        values["loss"] = presets()[stack].chunked
    try:
        return Stack(**values, gradient_accumulation=accumulating, quantization="nf4" if method == "qlora" else "none")
    except ValidationError as error:
        raise ValueError(str(error.errors()[0]["ctx"]["error"])) from None


def stack_name(method: str, stack: str, *settings: Any) -> str:
    """The stack that an answer is for, in a few words: the preset, and what the job changes of it.

    >>> stack_name("lora", "trl", "sgd", *[None] * (len(SETTINGS) - 1))
    'trl with optim=sgd'
    """
    given = _given(settings)
    comes_with = presets()[stack].values(key(method), given)
    changes = [f"{field}={value}" for field, value in given.items() if comes_with[field] != value]
    return f"{stack} with {', '.join(changes)}" if changes else stack


def _given(settings: tuple[Any, ...]) -> dict[str, Any]:
    return {field: value for field, value in zip(SETTINGS, settings, strict=True) if value is not None}


def _check(method: str, given: dict[str, Any], values: dict[str, Any], stack: str) -> None:
    """Refuse what a job says itself and cannot have; the preset's own settings give way."""
    values = {**values, "method": method}
    exclusions = [("method", field) for field in given if method == "full" and field in _OF_ADAPTERS]
    if method == "qlora" and given.get("torch_dtype") == "float32":
        exclusions.append(("method", "torch_dtype"))
    if given.get("adapter_dtype") == "bfloat16" and values["torch_dtype"] == "float32":
        exclusions.append(("adapter_dtype", "torch_dtype"))
    for one, other in exclusions:
        whose = "" if other in given else f" (of the stack {stack})"
        raise ValueError(f"{one} {values[one]!r} and {other} {values[other]!r}{whose} exclude each other")
