"""Presets of training stacks, with a source for each setting, and the training stack of a job.

The presets are in ``stacks.yaml``. The settings of a job override those of its preset.
"""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml  # at module level, because a process that is forked during an import would wait for it forever
from pydantic import BaseModel, ConfigDict, ValidationError

from autoconf.jobs.lora_layers import ALL, as_numbers
from autoconf.jobs.lora_targets import as_setting
from autoconf.jobs.names import key
from autoconf.jobs.stack import Stack, sharding_parts

STACKS = Path(__file__).with_name("stacks.yaml")
# The presets that there were when version 2.0.0 was released.
UP_TO_2_0_0 = ("reference", "trl", "fms-hf-tuning", "llama-factory")
# The settings that a job may override. The others of ``Stack`` follow from the preset, the method or accumulation.
SETTINGS = (
    "optim", "torch_dtype", "adapter_dtype", "mixed_precision", "gradient_checkpointing", "loss", "sharding", "lora_r",
    "lora_targets", "upcast_unquantized", "offload", "allocator", "objective", "quantization", "gradient_sync",
    "attention", "loading", "lora_dropout", "trained_modules", "use_dora", "lora_layers",
)  # fmt: skip
_OF_ADAPTERS = (
    "adapter_dtype",
    "lora_r",
    "lora_dropout",
    "lora_targets",
    "shard_adapters",
    "trained_modules",
    "use_dora",
    "lora_layers",
)
_OF_QUANTIZED = ("upcast_unquantized", "quantization")
# They exclude no method.
_NOTHING = (("quantization", "none"), ("trained_modules", "none"), ("use_dora", False), ("lora_layers", ALL))


class _Typed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PresetSetting(_Typed):
    """The value of one setting of a stack, and its source."""

    value: Any
    source: str


class Case(_Typed):
    """Settings of a preset that apply if the method or other settings have the values in ``when``."""

    when: dict[str, Any]
    settings: dict[str, PresetSetting]


class Preset(_Typed):
    """A named stack of ``stacks.yaml``."""

    description: str
    approximate: str = ""  # how far answers are from figures that the project published, if its code is not counted
    settings: dict[str, PresetSetting]
    cases: tuple[Case, ...] = ()
    chunked: Literal["chunked", "chunked_nll"] = "chunked"  # which implementation ``loss="chunked"`` selects

    def values(self, method: str, given: dict[str, Any]) -> dict[str, Any]:
        """The settings of the preset for a method, given the job's own settings."""
        values = {name: setting.value for name, setting in self.settings.items()}
        if "sharding" in given:
            given = {**given, "sharding": sharding_parts(given["sharding"])[0]}
        for case in self.cases:
            if case.when.items() <= {"method": method, **values, **given}.items():
                values |= {name: setting.value for name, setting in case.settings.items()}
        return values


@cache
def presets() -> dict[str, Preset]:
    """The presets by name.

    >>> list(presets())
    ['reference', 'trl', 'fms-hf-tuning', 'llama-factory', 'axolotl', 'open-instruct', 'unsloth']
    >>> presets()["trl"].settings["loss"].value
    'chunked'
    """
    table = yaml.safe_load(STACKS.read_text(encoding="utf-8"))
    return {name: Preset.model_validate(preset) for name, preset in table.items()}


@lru_cache(maxsize=4096)
def training_stack(method: str, accumulating: bool, stack: str, *settings: Any) -> Stack:
    """Build the training stack of a job from its preset and its own settings.

    Args:
        method: the method of the job; ``qlora`` quantizes, ``full`` has no adapters.
        accumulating: whether an optimizer step takes several micro-batches.
        stack: a preset's name.
        settings: the job's own settings, in the order of ``SETTINGS``; ``None`` takes the preset's value.

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
    if method != "qlora":
        values = {name: value for name, value in values.items() if name not in _OF_QUANTIZED}
    if method == "full":
        values = {name: value for name, value in values.items() if name not in _OF_ADAPTERS}
    elif values["adapter_dtype"] != "float32":
        values["adapter_dtype"] = values["torch_dtype"]  # PEFT makes adapters in their layer's dtype, or in float32
    _check_scaler(method, values)
    if values["loss"] == "chunked":
        values["loss"] = presets()[stack].chunked
    if "lora_targets" in values:
        values["lora_targets"] = as_setting(values["lora_targets"])
        values["lora_layers"] = as_numbers(values["lora_layers"])
    try:
        return Stack(**values, gradient_accumulation=accumulating)
    except ValidationError as error:
        raise ValueError(str(error.errors()[0]["ctx"]["error"])) from None


def stack_name(method: str, stack: str, *settings: Any) -> str:
    """Describe the stack of a job in a few words: the preset, and the settings that the job changes.

    >>> stack_name("lora", "trl", "sgd", *[None] * (len(SETTINGS) - 1))
    'trl with optim=sgd'
    """
    given = _given(settings)
    comes_with = presets()[stack].values(key(method), given)
    changes = [f"{field}={value}" for field, value in given.items() if comes_with[field] != value]
    return f"{stack} with {', '.join(changes)}" if changes else stack


def _given(settings: tuple[Any, ...]) -> dict[str, Any]:
    return {field: value for field, value in zip(SETTINGS, settings, strict=True) if value is not None}


def _check_scaler(method: str, values: dict[str, Any]) -> None:
    """Refuse gradients in float16, except under DeepSpeed, which has a scaler of its own."""
    field = "torch_dtype" if method == "full" else "adapter_dtype"
    in_float16 = (values["mixed_precision"], values[field]) == ("fp16", "float16")
    if in_float16 and not values["sharding"].startswith("zero"):
        # torch/amp/grad_scaler.py, _unscale_grads_. accelerate makes parameters float32 under FSDP in any case.
        raise ValueError(
            f"method {method!r}, mixed_precision 'fp16' and {field} 'float16' exclude each other: PyTorch's GradScaler "
            f"stops with 'Attempting to unscale FP16 gradients'; give {field} float32"
        )


def _check(method: str, given: dict[str, Any], values: dict[str, Any], stack: str) -> None:
    """Refuse contradictory settings of a job; where only the preset contradicts, the job's setting wins."""
    values = {**values, "method": method}
    excluded = (*(_OF_ADAPTERS if method == "full" else ()), *(_OF_QUANTIZED if method != "qlora" else ()))
    exclusions = [("method", field) for field in excluded if field in given and (field, given[field]) not in _NOTHING]
    if method == "qlora" and given.get("quantization") == "none":
        exclusions.append(("method", "quantization"))
    if method == "qlora" and given.get("torch_dtype") == "float32":
        exclusions.append(("method", "torch_dtype"))
    if given.get("adapter_dtype", "float32") not in ("float32", values["torch_dtype"]):
        exclusions.append(("adapter_dtype", "torch_dtype"))
    for one, other in exclusions:
        whose = "" if other in given else f" (of the stack {stack})"
        raise ValueError(f"{one} {values[one]!r} and {other} {values[other]!r}{whose} exclude each other")
