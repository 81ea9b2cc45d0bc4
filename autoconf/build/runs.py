"""Tables of real fine-tuning runs, each row with the stack and the libraries that it ran with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import pandas as pd
import yaml

from autoconf.build.architectures import Architecture, architectures
from autoconf.build.environments import Libraries
from autoconf.errors import BadInput
from autoconf.stack import Stack

_REQUIRED = (
    "model", "method", "number_gpus", "per_device_train_batch_size", "gradient_accumulation_steps", "tokens_per_sample",
    "mixed_precision", "framework", "lora_targets", "peak_allocated_gib", "failed",
    "transformers", "peft", "accelerate",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One real run: what was trained and how, and what the GPU said."""

    line: int  # of the table, counting the header's as 1
    model: str
    architecture: Architecture
    method: str
    stack: Stack
    framework: str
    gpus: int
    tokens_per_gpu: int  # of one micro-batch
    libraries: Libraries
    failed: bool
    peak_gib: float | None  # torch.cuda.max_memory_allocated, as the Trainer reported it; None where it was not
    unreported_gib: float  # what the report leaves out

    @property
    def stack_name(self) -> str:
        """The framework, with the Trainer's flag where that differs."""
        return self.framework + (", bf16" if self.stack.mixed_precision == "bf16" else "")

    def job(self) -> dict[str, Any]:
        """What ``autoconf.build.trace_jobs`` reads; the number of GPUs only as one or several."""
        return {
            "architecture": self.architecture.model_dump(),
            "method": self.method,
            "stack": self.stack.model_dump(),
            "gpus": min(self.gpus, 2),
        }


@cache
def _sources() -> dict[str, Any]:
    return yaml.safe_load((files(__package__) / "runs.yaml").read_text(encoding="utf-8"))


def read_runs(path: Path) -> list[Run]:
    """Read a table of fms-acceleration's benchmarks, as ``runs.yaml`` describes them.

    Args:
        path: CSV with at least the columns ``model``, ``method``, ``number_gpus``, ``per_device_train_batch_size``,
            ``gradient_accumulation_steps``, ``tokens_per_sample`` (may be empty for failed runs), ``mixed_precision``,
            ``framework``, ``lora_targets`` (separated by ``|``), ``peak_allocated_gib`` (may be empty), ``failed`` (0
            or 1), ``transformers``, ``peft`` and ``accelerate`` (versions).

    Raises:
        BadInput: the file cannot be read, a column is missing, or a row names a model or framework without an entry.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: {error}") from None
    missing = [column for column in _REQUIRED if column not in table]
    if missing:
        raise BadInput(f"{path}: required column missing: {', '.join(missing)}")
    runs = []
    for line, row in enumerate(table.to_dict("records"), 2):
        try:
            runs.append(_run(line, {str(column): str(value) for column, value in row.items()}))
        except (KeyError, ValueError) as error:
            raise BadInput(f"{path}, line {line}: {type(error).__name__}: {error}") from None
    return runs


def _run(line: int, row: dict[str, str]) -> Run:
    source = _sources()["benchmarks"]
    model = source["models"][row["model"]]
    entry = architectures()[model["architecture"]]
    architecture = entry.model_copy(update={"config": {**entry.config, "vocab_size": model["vocab_size"]}})
    stack = _stack(row, source)
    gpus = int(row["number_gpus"])
    tokens = int(row["tokens_per_sample"] or source["tokens_per_sample"].get(row["model"]) or source["longest_sample"])
    unreported = 0.0
    if gpus > 1 and not stack.shard_adapters:
        # The Trainer's memory tracker adds stages up, and whole adapters come to the GPU between two of them
        # (transformers/trainer_utils.py, TrainerMemoryTracker; scripts/benchmarks/benchmark.py).
        unreported = 4 * _adapter_parameters(architecture, stack) / 2**30
    return Run(
        line=line,
        model=row["model"],
        architecture=architecture,
        method="qlora" if stack.quantization == "nf4" else row["method"],
        stack=stack,
        framework=row["framework"],
        gpus=gpus,
        tokens_per_gpu=int(row["per_device_train_batch_size"]) * tokens,
        libraries=Libraries(row["transformers"], row["peft"], row["accelerate"], source["bitsandbytes"]),
        failed=row["failed"] == "1",
        peak_gib=float(row["peak_allocated_gib"]) if row["peak_allocated_gib"] and row["tokens_per_sample"] else None,
        unreported_gib=unreported,
    )


def _stack(row: dict[str, str], source: dict[str, Any]) -> Stack:
    settings = {**source["all"], **source["frameworks"][row["framework"]]}
    settings["mixed_precision"] = "bf16" if row["mixed_precision"] in ("bf16", "fp16") else "no"
    settings["gradient_accumulation"] = int(row["gradient_accumulation_steps"]) > 1
    if row["lora_targets"]:
        settings["lora_targets"] = tuple(row["lora_targets"].split("|"))
    return Stack(**settings)


def _adapter_parameters(architecture: Architecture, stack: Stack) -> int:
    """Parameters of LoRA's adapters; such stacks adapt attention's projections only."""
    config = architecture.config
    width = config.get("hidden_size") or config["n_embd"]
    heads = config.get("num_attention_heads") or config["n_head"]
    per_head = width // heads
    shared = per_head * (1 if config.get("multi_query") else config.get("num_key_value_heads", heads))
    outputs = {"q_proj": width, "k_proj": shared, "v_proj": shared, "o_proj": width, "c_attn": width + 2 * shared}
    present = ("c_attn",) if "n_embd" in config else ("q_proj", "k_proj", "v_proj", "o_proj")
    targets = [name for name in cast(tuple[str, ...], stack.lora_targets) if name in present]
    return architecture.layers * stack.lora_r * sum(width + outputs[name] for name in targets)
