"""Answers to queries, one dataclass for each query.

Every answer has these fields:

- ``outcome``: ``ok``; ``fits_nowhere``: the job is in the version's domain, but does not fit on any layout considered;
  ``outside_domain``: the version does not support the model, GPU, method, setting or size; ``bad_value``: a row of a
  table has an invalid value, or names a version that does not exist.
- ``reason``: why the outcome is not ``ok``; empty if it is.
- ``notes``: short sentences about the basis of the answer: how a name was resolved, settings that the GPU type cannot
  run and, for one job, defaults that decide. Answers that differ only in notes are equal. A table of answers has a
  column of notes, joined by ``; ``, if there are any.
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
    """The outcome and the reason of a job without a result."""

    outcome: Outcome
    reason: str


# Changes that people make by an environment variable.
_VARIABLES = {("allocator", "expandable_segments"): "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"}


@dataclass(frozen=True)
class Change:
    """A change of one field of a job.

    >>> print(Change("loss", "full", "chunked"))
    loss=chunked
    >>> print(Change("allocator", "default", "expandable_segments"))
    PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
    """

    field: str
    before: Any
    value: Any

    def __str__(self) -> str:
        return _VARIABLES.get((self.field, self.value)) or f"{self.field}={self.value}"


def layout(gpus: int, workers: int) -> str:
    """A layout in words.

    >>> layout(1, 1), layout(8, 2)
    ('1 GPU', '2 workers of 8 GPUs')
    """
    each = "1 GPU" if gpus == 1 else f"{gpus} GPUs"
    return each if workers == 1 else f"{workers} workers of {each}"


@dataclass(frozen=True)
class Remedy(Change):
    """A change that makes a job fit, and the layout on which the changed job fits.

    >>> print(Remedy("batch_size", 7, 8, gpus=8, workers=1))
    batch_size=8 would fit on 8 GPUs (8 does not divide 7)
    >>> print(Remedy("gradient_accumulation_steps", 4, 1, gpus=8, workers=2))
    gradient_accumulation_steps=1 would fit on 2 workers of 8 GPUs
    >>> print(Remedy("loss", "full", "chunked", gpus=1, workers=1, also=Change("method", "full", "lora")))
    method=lora with loss=chunked would fit on 1 GPU
    """

    gpus: int  # per worker
    workers: int
    also: Change | None = None  # a second change that is needed as well

    def __str__(self) -> str:
        total = self.gpus * self.workers
        indivisible = self.field == "batch_size" and self.before % total
        why = f" ({total} does not divide {self.before})" if indivisible else ""
        changes = " with ".join(str(change) for change in (self.also, Change.__str__(self)) if change)
        return f"{changes} would fit on {layout(self.gpus, self.workers)}{why}"


@dataclass(frozen=True)
class Recommendation:
    """The smallest number of GPUs on which a job fits, or the reason why there is none."""

    can_recommend: int = 0  # or 1
    gpus: int | None = None  # per worker; None if there is no recommendation
    workers: int | None = None
    reason: str = ""  # why there is no recommendation; empty if there is one
    stack: str = ""  # the training stack: the preset, and the settings that the job changes
    changes: tuple[Remedy, ...] = dataclasses.field(default=(), repr=False)  # the changes at the end of the reason
    outcome: Outcome = "ok"
    # Memory of the host of one worker that the job takes, in GiB; None if it takes none, and up to version 2.0.0.
    host_memory_gib: float | None = dataclasses.field(default=None, repr=False)
    notes: tuple[str, ...] = dataclasses.field(default=(), repr=False, compare=False)

    def _repr_html_(self) -> str:
        from autoconf.planner.html import recommendation_html

        return recommendation_html(self)


@dataclass(frozen=True)
class Estimate:
    """Memory of each GPU of a job, in GiB.

    The parts are those of the deciding moment and add up to ``needed_memory_gib``. A job fits if this does not exceed
    usable memory and the probability reaches the predictor's threshold. If there is no estimate, all fields are
    ``None`` and ``reason`` says why.
    """

    fits: int | None = None  # 1 or 0
    probability: float | None = None  # of fitting; 0 if a rule excludes it
    peak_memory_gib: float | None = None  # peak of allocated memory, as in torch.cuda.max_memory_allocated
    # Most memory that PyTorch reserves for it on the smallest sufficient GPU; None up to version 2.0.0.
    peak_reserved_gib: float | None = None
    needed_memory_gib: float | None = None
    usable_memory_gib: float | None = None  # of the GPU, as CUDA reports it
    headroom_gib: float | None = None  # usable less needed memory; negative if more is needed
    weights_gib: float | None = None
    gradients_gib: float | None = None
    optimizer_gib: float | None = None
    gathered_gib: float | None = None  # parameters that FSDP has gathered at that moment
    activations_gib: float | None = None
    fragmentation_gib: float | None = None  # reserved by PyTorch but not allocated; None up to version 2.0.0
    reserve_gib: float | None = None  # CUDA context, workspaces, NCCL and, up to version 2.0.0, fragmentation
    host_memory_gib: float | None = None  # of the host of one worker, not of a GPU; None up to version 2.0.0
    reason: str = ""
    outcome: Outcome = "ok"
    notes: tuple[str, ...] = dataclasses.field(default=(), repr=False, compare=False)

    def _repr_html_(self) -> str:
        from autoconf.planner.html import estimate_html

        return estimate_html(self)


@dataclass(frozen=True)
class Throughput:
    """The speed of a job on a number of GPUs, and what a run takes.

    The bounds are the 10th and the 90th percentile of measured runs that were held out; notes say where no such runs
    were measured, which makes the bounds wide. If there is no estimate, all fields are ``None`` and ``reason`` says
    why.
    """

    fits: int | None = None  # 1 or 0; with 0 the speed is that of the job if it had the memory
    tokens_per_second: float | None = None  # of all GPUs, padding included
    tokens_per_second_low: float | None = None
    tokens_per_second_high: float | None = None
    step_seconds: float | None = None  # of an optimizer step, with all of its micro-batches
    model_flops_utilization: float | None = None  # model FLOPs, without recomputation, of the GPUs' published peak
    limit: str | None = None  # what takes the longest: compute, memory, network, kernel launches or offload
    hours: float | None = None  # of the run, if its length was given
    cost: float | None = None  # of the run, in the currency of the prices; None if the GPU type has no price
    reason: str = ""
    outcome: Outcome = "ok"
    notes: tuple[str, ...] = dataclasses.field(default=(), repr=False, compare=False)


@dataclass(frozen=True)
class LargestBatch:
    """The largest batch that fits, or the reason why not even one sample per GPU fits."""

    can_recommend: int = 0  # or 1
    per_device_train_batch_size: int | None = None
    batch_size: int | None = None  # over all GPUs
    reason: str = ""
    outcome: Outcome = "ok"
    notes: tuple[str, ...] = dataclasses.field(default=(), repr=False, compare=False)


@dataclass(frozen=True)
class LargestSample:
    """The longest samples that fit, in tokens, or the reason why not even one token fits."""

    can_recommend: int = 0  # or 1
    tokens_per_sample: int | None = None
    reason: str = ""
    outcome: Outcome = "ok"
    notes: tuple[str, ...] = dataclasses.field(default=(), repr=False, compare=False)


@dataclass(frozen=True)
class Plan:
    """A layout on which a run fits, for which no other layout is both faster and cheaper; or the reason for none."""

    can_recommend: int = 0  # or 1
    gpu_model: str | None = None
    gpus: int | None = None  # per worker
    workers: int | None = None
    tokens_per_second: float | None = None  # of all GPUs
    hours: float | None = None  # of the run
    cost: float | None = None  # of the run, in the currency of the prices
    cost_per_million_tokens: float | None = None
    cost_per_hour: float | None = None  # of all GPUs
    rank: int | None = None  # 1 is the cheapest, the last one the fastest
    reason: str = ""
    outcome: Outcome = "ok"
    notes: tuple[str, ...] = dataclasses.field(default=(), repr=False, compare=False)


PriceSource = Mapping[str, Any] | str | os.PathLike[str] | None


@dataclass(frozen=True)
class GpuModel:
    """A GPU type with the smallest layout on which a job fits and what it costs, or the reason why there is none.

    ``autoconf.throughput`` gives the bounds of the speed, from which the costs of the run and of tokens follow.
    """

    can_recommend: int = 0  # or 1
    gpu_model: str | None = None
    gpus: int | None = None  # per worker
    workers: int | None = None
    cost_per_hour: float | None = None  # of all GPUs, in the currency of the prices; None if the type has no price
    tokens_per_second: float | None = None  # of all GPUs; None if the speed is not known
    hours: float | None = None  # of the run, if its length was given
    cost: float | None = None  # of the run, if its length was given
    cost_per_million_tokens: float | None = None
    rank: int | None = None  # 1 is the recommendation
    reason: str = ""
    outcome: Outcome = "ok"
    notes: tuple[str, ...] = dataclasses.field(default=(), repr=False, compare=False)
