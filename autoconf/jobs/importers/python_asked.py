"""The fields that options give for a script whose settings are those of a command that is not known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from autoconf.jobs.importers.key_table import Setting, job_keys
from autoconf.jobs.importers.kubernetes import missing_options
from autoconf.jobs.importers.objectives import uncertain_objectives
from autoconf.jobs.importers.words import is_unknown
from autoconf.jobs.names import listed

_SETTINGS = (
    "gradient_accumulation_steps", "mixed_precision", "torch_dtype", "gradient_checkpointing", "optim", "loss",
    "attention", "sharding",
)  # fmt: skip
_OF_ADAPTERS = ("lora_r", "lora_targets", "lora_dropout")
_OF_QUANTIZED = ("quantization", "upcast_unquantized")
_DROPOUT = {"dropout": "lora_dropout"}


def asked(settings: Iterable[Setting], options: Mapping[str, Any]) -> str:
    """What is still to be given by options, as a list of them; empty if nothing is.

    Args:
        settings: What the script says for itself.
        options: Fields given by options; ``stack`` gives all settings.

    >>> asked([], {"stack": "trl", "model_name": "llama-7b", "method": "full", "tokens_per_sample": 512})
    '--per-device-train-batch-size'
    """
    settings = list(settings)
    stated = {*options, *_stated(settings)}
    fields = [] if "stack" in options else [*_SETTINGS, *_of_method(str(options.get("method", "full")))]
    objectives = uncertain_objectives(settings)
    if objectives and "loss" in fields:
        fields.remove("loss")
    if str(options.get("sharding", "ddp")) != "ddp" and "stack" not in options:
        fields.append("offload")
    wanted = [f"--{field.replace('_', '-')}" for field in fields if field not in stated]
    wanted = [*missing_options(options), *wanted]
    if objectives and "objective" not in options:
        wanted.append(f"--objective {' or '.join(objectives)}")
    return listed(wanted) if wanted else ""


def _of_method(method: str) -> tuple[str, ...]:
    return () if method == "full" else _OF_ADAPTERS if method == "lora" else (*_OF_ADAPTERS, *_OF_QUANTIZED)


def _stated(settings: Iterable[Setting]) -> Iterator[str]:
    """The fields that the script states itself."""
    table = job_keys().dialects["arguments"]
    for setting in settings:
        meaning = table.find(setting.key) if setting.dialect == "arguments" else None
        parts = setting.value if isinstance(setting.value, list) else [setting.value]
        if meaning is not None and not any(map(is_unknown, parts)):
            yield from (_DROPOUT.get(fact, fact) for fact in meaning.facts())
