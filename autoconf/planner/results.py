"""Answers to queries, one dataclass for each query.

Every answer has these fields:

- ``outcome``: ``ok``; ``fits_nowhere``: the version has figures for the job, and nothing that was considered fits;
  ``outside_domain``: the version does not answer for the model, GPU, method, setting or size; ``bad_value``: a row of a
  table has a value that can never be right, or names a version that does not exist.
- ``reason``: why the outcome is not ``ok``; empty if it is.
- ``notes``: short sentences on what the answer rests on: what a name was taken for, what the GPU type cannot run and,
  for one job, which default decides. Answers that differ only in notes are equal. A table of answers has them in one
  column, joined by ``; ``, if there are any.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Outcome = Literal["ok", "fits_nowhere", "outside_domain", "bad_value"]


@dataclass(frozen=True)
class Problem:
    """Why a job has no answer."""

    outcome: Outcome
    reason: str


@dataclass(frozen=True)
class Change:
    """A change of one field of a job.

    >>> print(Change("loss", "full", "chunked"))
    loss=chunked
    """

    field: str
    before: Any
    value: Any

    def __str__(self) -> str:
        return f"{self.field}={self.value}"


@dataclass(frozen=True)
class Remedy(Change):
    """A change with which a job gets a recommendation, and the layout that it then gets.

    >>> print(Remedy("batch_size", 7, 8, gpus=8, workers=1))
    batch_size=8 would fit on 8 GPUs (8 does not divide 7)
    >>> print(Remedy("gradient_accumulation_steps", 4, 1, gpus=8, workers=2))
    gradient_accumulation_steps=1 would fit on 2 workers of 8 GPUs
    >>> print(Remedy("loss", "full", "chunked", gpus=1, workers=1, also=Change("method", "full", "lora")))
    method=lora with loss=chunked would fit on 1 GPU
    """

    gpus: int  # per worker
    workers: int
    also: Change | None = None  # a second change, without which it is not enough

    def __str__(self) -> str:
        unit = "GPU" if self.gpus == 1 else "GPUs"
        layout = f"{self.gpus} {unit}" if self.workers == 1 else f"{self.workers} workers of {self.gpus} {unit}"
        total = self.gpus * self.workers
        indivisible = self.field == "batch_size" and self.before % total
        why = f" ({total} does not divide {self.before})" if indivisible else ""
        changes = " with ".join(str(change) for change in (self.also, Change.__str__(self)) if change)
        return f"{changes} would fit on {layout}{why}"


@dataclass(frozen=True)
class Recommendation:
    """The smallest number of GPUs that a job fits on, or why there is none."""

    can_recommend: int = 0  # or 1
    gpus: int | None = None  # per worker; None if there is no recommendation
    workers: int | None = None
    reason: str = ""  # why there is no recommendation; empty if there is one
    stack: str = ""  # what the answer is for: the preset, and what the job changes of it
    changes: tuple[Remedy, ...] = dataclasses.field(default=(), repr=False)  # those that the reason names at its end
    outcome: Outcome = "ok"
    notes: tuple[str, ...] = dataclasses.field(default=(), repr=False, compare=False)


@dataclass(frozen=True)
class Estimate:
    """Memory of each GPU of a job, in GiB.

    The parts are those of the moment that decides, and add up to ``needed_memory_gib``: a job fits where that does not
    exceed usable memory, but for what the predictor's threshold asks beside. All are None where ``reason`` says why.
    """

    fits: int | None = None  # 1 or 0
    probability: float | None = None  # of fitting; 0 where a rule forbids it
    peak_memory_gib: float | None = (
        None  # most that is allocated at a time, as torch.cuda.max_memory_allocated counts it
    )
    needed_memory_gib: float | None = None
    usable_memory_gib: float | None = None  # of the GPU, as CUDA reports it
    headroom_gib: float | None = None  # usable memory without what is needed; negative where that is more
    weights_gib: float | None = None
    gradients_gib: float | None = None
    optimizer_gib: float | None = None
    gathered_gib: float | None = None  # parameters that FSDP has whole at that moment
    activations_gib: float | None = None
    reserve_gib: float | None = None  # CUDA context, workspaces, NCCL, fragmentation
    reason: str = ""
    outcome: Outcome = "ok"
    notes: tuple[str, ...] = dataclasses.field(default=(), repr=False, compare=False)


@dataclass(frozen=True)
class LargestBatch:
    """The largest batch that fits, or why not a single sample on each GPU does."""

    can_recommend: int = 0  # or 1
    per_device_train_batch_size: int | None = None
    batch_size: int | None = None  # over all GPUs
    reason: str = ""
    outcome: Outcome = "ok"
    notes: tuple[str, ...] = dataclasses.field(default=(), repr=False, compare=False)


@dataclass(frozen=True)
class LargestSample:
    """The most tokens of a sample that fit, or why not a single one does."""

    can_recommend: int = 0  # or 1
    tokens_per_sample: int | None = None
    reason: str = ""
    outcome: Outcome = "ok"
    notes: tuple[str, ...] = dataclasses.field(default=(), repr=False, compare=False)


PriceSource = Mapping[str, Any] | str | os.PathLike[str] | None


@dataclass(frozen=True)
class GpuModel:
    """A type of GPU for a job, with the smallest layout that fits; or why there is none."""

    can_recommend: int = 0  # or 1
    gpu_model: str | None = None
    gpus: int | None = None  # per worker
    workers: int | None = None
    cost_per_hour: float | None = None  # of all GPUs, in the prices' currency; None where the type has no price
    rank: int | None = None  # 1 is the recommendation
    reason: str = ""
    outcome: Outcome = "ok"
    notes: tuple[str, ...] = dataclasses.field(default=(), repr=False, compare=False)
