"""Read tables of real fine-tuning runs, with the stack and the libraries of each run."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, cast, get_args

import pandas as pd
import yaml

from autoconf.errors import BadInput
from autoconf.jobs import values
from autoconf.jobs.stack import Checkpointing, Stack
from autoconf.pipeline.catalog import Architecture, architectures, gpu_types
from autoconf.pipeline.validation.environments import Libraries

_LIBRARIES = ("transformers", "peft", "accelerate")
_BENCHMARKS = (
    "model", "method", "number_gpus", "per_device_train_batch_size", "gradient_accumulation_steps", "tokens_per_sample",
    "mixed_precision", "framework", "lora_targets", "peak_allocated_gib", "failed", *_LIBRARIES,
)  # fmt: skip
_FAILED = {"0": False, "1": True}
_CAMPAIGN_STEPS = 4  # the actuator's default of gradient_accumulation_steps
_CAMPAIGN = ("model_name", "method", "gpu_model", "number_gpus", "tokens_per_sample", "batch_size")


@dataclass(frozen=True)
class Run:
    """One real run: its job, its libraries and its measurements."""

    line: int  # line in the table; the header is line 1
    model: str
    architecture: Architecture
    method: str
    stack: Stack
    framework: str
    gpus: int
    tokens_per_gpu: int  # of one micro-batch
    libraries: Libraries | None  # None: the installed ones
    usable_gib: float  # usable memory of the GPU that CUDA reports
    failed: bool
    peak_gib: float | None  # torch.cuda.max_memory_allocated, from the Trainer's report; None if it is missing
    unreported_gib: float  # memory that the report omits
    samples: int = 1  # of one micro-batch on each GPU
    accumulation: int = 1  # micro-batches of an update
    in_use_gib: float | None = None  # the most that nvidia-smi read, cache and context included; None where it did not

    @property
    def stack_name(self) -> str:
        """The framework, with the Trainer's flag if it differs."""
        return self.framework + (", bf16" if self.stack.mixed_precision == "bf16" else "")

    def job(self) -> dict[str, Any]:
        """The input of ``autoconf.pipeline.validation.trace_jobs``; the number of GPUs is only one or several."""
        return {
            "architecture": self.architecture.model_dump(),
            "method": self.method,
            "stack": self.stack.model_dump(),
            "gpus": min(self.gpus, 2),
        }

    def replay_job(self) -> dict[str, Any]:
        """The input of ``autoconf.pipeline.validation.replay_jobs``, without the capacity of the GPU."""
        batches = (self.samples, self.tokens_per_gpu // self.samples, self.accumulation)
        return {**self.job(), "gpus": self.gpus, "batches": batches}


@cache
def _sources() -> dict[str, Any]:
    return yaml.safe_load((files(__package__) / "runs.yaml").read_text(encoding="utf-8"))


def read_runs(path: Path) -> list[Run]:
    """Read a table of real runs: fms-acceleration's benchmarks, or the campaign of ado's SFTTrainer actuator.

    Args:
        path: CSV. Benchmarks have the columns ``model``, ``method``, ``number_gpus``, ``per_device_train_batch_size``,
            ``gradient_accumulation_steps``, ``tokens_per_sample`` (may be empty for failed runs), ``mixed_precision``,
            ``framework``, ``lora_targets`` (separated by ``|``), ``peak_allocated_gib`` (may be empty), ``failed``
            (0 or 1) and the versions ``transformers``, ``peft`` and ``accelerate``. The campaign has ``model_name``,
            ``method``, ``gpu_model``, ``number_gpus``, ``tokens_per_sample`` and ``batch_size`` (global), and may have
            ``gradient_accumulation_steps``, ``fast_kernels``, ``checkpointing``, ``fms_hf_tuning`` (a version) and
            ``failed``; rows with methods other than ``full`` and ``lora`` are skipped.

    Raises:
        BadInput: the file cannot be read, a column is missing, or a cell is invalid; the message names the line, the
            column and the allowed values.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: {error}") from None
    is_campaign = "framework" not in table and "model_name" in table
    missing = [column for column in (_CAMPAIGN if is_campaign else _BENCHMARKS) if column not in table]
    if missing:
        raise BadInput(f"{path}: required column missing: {', '.join(missing)}")
    runs = []
    for line, record in enumerate(table.to_dict("records"), 2):
        row = {str(column): str(value) for column, value in record.items()}
        if is_campaign:
            row = {**_sources()["campaign"]["absent"], **row}
        if is_campaign and row["method"] not in ("full", "lora"):
            continue
        try:
            runs.append((_campaign_run if is_campaign else _benchmark_run)(line, row))
        except ValueError as error:
            raise BadInput(f"{path}, line {line}: {error}") from None
    return runs


def _one_of(row: dict[str, str], column: str, meanings: Mapping[str, Any]) -> Any:
    """The meaning of a cell.

    >>> _one_of({"failed": "1"}, "failed", {"0": False, "1": True})
    True
    >>> _one_of({"failed": "x"}, "failed", {"0": False, "1": True})
    Traceback (most recent call last):
    ValueError: failed: must be one of 0, 1; got 'x'
    """
    value = row[column]
    if value not in meanings:
        few = len(meanings) <= 12
        names = meanings if few else difflib.get_close_matches(value, meanings, cutoff=0)
        allowed = f"one of {', '.join(names)}" if few else f"one of {len(meanings)} names, such as {', '.join(names)}"
        raise ValueError(f"{column}: must be {allowed}; got {value!r}")
    return meanings[value]


def _whole(row: dict[str, str], column: str) -> int:
    return values.whole_number(column, row[column])


def _gib(row: dict[str, str], column: str) -> float:
    try:
        number = float(row[column])
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"{column}: must be a number of GiB > 0, got {row[column]!r}")
    return number


def _campaign_run(line: int, row: dict[str, str]) -> Run:
    source = _sources()["campaign"]
    architecture = _one_of(row, "model_name", architectures())
    version = row["fms_hf_tuning"]
    libraries = Libraries(*_one_of(row, "fms_hf_tuning", source["libraries"]))
    settings = {**source["all"], **source["versions"].get(version, {})}
    accumulation = _whole(row, "gradient_accumulation_steps") if row["gradient_accumulation_steps"] else _CAMPAIGN_STEPS
    settings["gradient_accumulation"] = accumulation > 1
    settings["gradient_checkpointing"] = _one_of(row, "checkpointing", {way: way for way in get_args(Checkpointing)})
    fast = row["fast_kernels"] != "none"
    settings["kernels"] = tuple(source["fast_kernels"]) if fast else ()
    installed = architecture.family in source["traced_with_installed_libraries"]
    gpus = _whole(row, "number_gpus")
    return Run(
        line=line,
        model=row["model_name"],
        architecture=architecture,
        method=row["method"],
        stack=Stack(**settings),
        framework=f"fms-hf-tuning {version}" + (", fast kernels" if fast else ""),
        gpus=gpus,
        tokens_per_gpu=_whole(row, "batch_size") * _whole(row, "tokens_per_sample") // gpus,
        libraries=None if installed else libraries,
        usable_gib=_one_of(row, "gpu_model", gpu_types()).usable_gib,
        failed=_one_of(row, "failed", _FAILED),
        peak_gib=None,
        unreported_gib=0.0,
        samples=max(1, _whole(row, "batch_size") // gpus),
        accumulation=accumulation,
    )


def _benchmark_run(line: int, row: dict[str, str]) -> Run:
    source = _sources()["benchmarks"]
    model = _one_of(row, "model", source["models"])
    entry = architectures()[model["architecture"]]
    architecture = entry.model_copy(update={"config": {**entry.config, "vocab_size": model["vocab_size"]}})
    stack = _stack(row, source)
    quantized = stack.quantization == "nf4"
    methods = {"qlora": "qlora", "gptq-lora": "qlora"} if quantized else {"full": "full", "lora": "lora"}
    versions = {library: values.name(library, row[library]) for library in _LIBRARIES}
    gpus = _whole(row, "number_gpus")
    longest = source["tokens_per_sample"].get(row["model"], source["longest_sample"])
    tokens = _whole(row, "tokens_per_sample") if row["tokens_per_sample"] else longest
    unreported = 0.0
    if gpus > 1 and not stack.shard_adapters:
        # The Trainer's memory tracker adds up stages, and whole adapters are moved to the GPU between two of them
        # (transformers/trainer_utils.py, TrainerMemoryTracker; scripts/benchmarks/benchmark.py).
        unreported = 4 * _adapter_parameters(architecture, stack) / 2**30
    return Run(
        line=line,
        model=row["model"],
        architecture=architecture,
        method=_one_of(row, "method", methods),
        stack=stack,
        framework=row["framework"],
        gpus=gpus,
        tokens_per_gpu=_whole(row, "per_device_train_batch_size") * tokens,
        libraries=Libraries(**versions, bitsandbytes=source["bitsandbytes"]),
        usable_gib=gpu_types()["NVIDIA-A100-SXM4-80GB"].usable_gib,
        failed=_one_of(row, "failed", _FAILED),
        peak_gib=_gib(row, "peak_allocated_gib") if row["peak_allocated_gib"] and row["tokens_per_sample"] else None,
        unreported_gib=unreported,
        samples=_whole(row, "per_device_train_batch_size"),
        accumulation=_whole(row, "gradient_accumulation_steps"),
        in_use_gib=_gib(row, "nvidia_smi_gib") if row.get("nvidia_smi_gib") else None,
    )


def _stack(row: dict[str, str], source: dict[str, Any]) -> Stack:
    settings = {**source["all"], **_one_of(row, "framework", source["frameworks"])}
    # As large as bfloat16.
    settings["mixed_precision"] = _one_of(row, "mixed_precision", {"none": "no", "bf16": "bf16", "fp16": "bf16"})
    settings["gradient_accumulation"] = _whole(row, "gradient_accumulation_steps") > 1
    if row["lora_targets"]:
        settings["lora_targets"] = tuple(row["lora_targets"].split("|"))
    return Stack(**settings)


def _adapter_parameters(architecture: Architecture, stack: Stack) -> int:
    """Parameters of LoRA adapters; these stacks adapt only the projections of attention."""
    config = architecture.config
    width = config.get("hidden_size") or config["n_embd"]
    heads = config.get("num_attention_heads") or config["n_head"]
    per_head = width // heads
    shared = per_head * (1 if config.get("multi_query") else config.get("num_key_value_heads", heads))
    outputs = {"q_proj": width, "k_proj": shared, "v_proj": shared, "o_proj": width, "c_attn": width + 2 * shared}
    present = ("c_attn",) if "n_embd" in config else ("q_proj", "k_proj", "v_proj", "o_proj")
    targets = [name for name in cast(tuple[str, ...], stack.lora_targets) if name in present]
    return architecture.layers * stack.lora_r * sum(width + outputs[name] for name in targets)
