"""Changes of a job that may make it fit: the values to try for each field.

To add a change, add an entry to the tables at the end: the field, and a function that proposes values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from autoconf.jobs.job import GPU_MEMORY, STACK_FIELDS, stack_of
from autoconf.jobs.names import key
from autoconf.memory.units import Booleans, Integers
from autoconf.planner import hardware
from autoconf.planner.domain import JobArrays, JobColumns, column, inside, pick
from autoconf.planner.frontier import edges
from autoconf.planner.known_names import gpu_names
from autoconf.planner.search import even_counts, recommendations
from autoconf.predictor.predictor import Predictor

# For each job the values to try, possibly none.
Proposals = list[tuple[Any, ...]]
Propose = Callable[[Predictor, JobColumns], Proposals]
Changes = tuple[tuple[str, Propose], ...]
Tried = tuple[int, str, Any]  # a job by position, a field, and the value to try
_NOTHING = np.iinfo(np.int64).max
_AT_ONCE = 50_000  # changed jobs per call: bounds the memory that candidates take


def helping(predictor: Predictor, columns: JobColumns, tried: Sequence[Tried]) -> Iterator[tuple[Tried, int, int]]:
    """Yield the changes that get their job a recommendation, with its GPUs per worker and its workers."""
    for start in range(0, len(tried), _AT_ONCE):
        some = tried[start : start + _AT_ONCE]
        for change, found in zip(some, recommendations(predictor, changed(columns, some)), strict=True):
            if found.gpus is not None and found.workers is not None:
                yield change, found.gpus, found.workers


def changed(columns: JobColumns, tried: Sequence[Tried]) -> JobColumns:
    """Apply changes: one changed job for each."""
    jobs = pick(columns, [index for index, _, _ in tried])
    for field in {field for _, field, _ in tried}:
        jobs[field] = list(column(jobs, field))
    for position, (_, field, value) in enumerate(tried):
        jobs[field][position] = value
        if field == "gpu_model" and GPU_MEMORY in jobs:  # the memory was that of the GPU that is replaced
            jobs[GPU_MEMORY][position] = None
    return jobs


# --- settings ---------------------------------------------------------------------------------------------------------


def _one_step(predictor: Predictor, columns: JobColumns) -> Proposals:
    return [(1,) if steps > 1 else () for steps in column(columns, "gradient_accumulation_steps")]


def _setting(field: str, value: str, *, in_place_of: tuple[str, ...]) -> Propose:
    """Propose a setting or a method to jobs that have one of the values in ``in_place_of``."""

    @lru_cache(maxsize=65_536)  # jobs of a table share few stacks
    def proposed(*job: Any) -> tuple[str, ...]:
        fields = dict(zip(STACK_FIELDS, job, strict=True))
        has = key(fields["method"]) if field == "method" else getattr(stack_of(fields), field)
        if has not in in_place_of:
            return ()
        try:
            stack_of({**fields, field: value})
        except ValueError:  # another setting excludes it
            return ()
        return (value,)

    def propose(predictor: Predictor, columns: JobColumns) -> Proposals:
        known = {"method": predictor.domain.methods, **predictor.domain.settings}
        if value not in known.get(field, [value]):
            return [()] * len(columns["method"])
        return [proposed(*job) for job in _stacks(columns)]

    return propose


def _lower_rank(predictor: Predictor, columns: JobColumns) -> Proposals:
    """Propose the largest lower rank that is enough, of a half, a quarter and so on."""
    ranks = [_rank(dict(zip(STACK_FIELDS, job, strict=True))) for job in _stacks(columns)]
    tried = [
        (index, "lora_r", rank >> halved) for index, rank in enumerate(ranks) for halved in range(1, rank.bit_length())
    ]
    proposed: Proposals = [()] * len(ranks)
    for (index, _, rank), _, _ in helping(predictor, columns, tried):  # larger ranks come first
        proposed[index] = proposed[index] or (rank,)
    return proposed


def _rank(job: dict[str, Any]) -> int:
    """The rank of a job's adapters; 0 without adapters."""
    return 0 if key(job["method"]) == "full" else stack_of(job).lora_r


def _stacks(columns: JobColumns) -> Iterator[tuple[Any, ...]]:
    return zip(*(column(columns, field) for field in STACK_FIELDS), strict=True)


# --- sizes ------------------------------------------------------------------------------------------------------------


def _batch(field: str, nearest: Callable[[JobArrays, Integers, Integers, int], Integers]) -> Propose:
    """Propose to jobs with this batch field the nearest batch that fits on some number of GPUs."""

    def propose(predictor: Predictor, columns: JobColumns) -> Proposals:
        proposed: Proposals = [()] * len(columns["model_name"])
        given = [index for index, batch in enumerate(column(columns, field)) if batch is not None]
        if not given:
            return proposed
        placed = inside(predictor, pick(columns, given))
        counts, even, tokens = _tokens_on_counts(predictor, placed.jobs)
        samples = np.where(even, tokens // placed.jobs.tokens_per_sample[:, None], 0)
        found = nearest(placed.jobs, counts, samples, predictor.domain.max_batch_size).tolist()
        for position, value in zip(placed.positions.tolist(), found, strict=True):
            proposed[given[position]] = () if value == _NOTHING else (value,)
        return proposed

    return propose


def _nearest_batch(jobs: JobArrays, counts: Integers, samples: Integers, largest: int) -> Integers:
    """The nearest batch over all GPUs; of two equally near ones, the larger.

    Args:
        jobs: jobs with a batch over all GPUs.
        counts: numbers of GPUs, shape (counts,).
        samples: the most samples that fit on each GPU, shape (jobs, counts).
        largest: the largest batch of the domain.
    """
    # A batch on n GPUs is a multiple of n: take the nearest multiples below and above the job's batch.
    batch = jobs.batch_size[:, None]
    below = (counts * np.minimum(samples, batch // counts)).max(axis=1, initial=0)
    more = counts * -(-batch // counts)
    fits = (more <= counts * samples) & (more <= largest)
    above: Integers = more.min(axis=1, where=fits, initial=_NOTHING)
    return np.where((below == 0) | (above - batch[:, 0] <= batch[:, 0] - below), above, below)


def _nearest_on_each(jobs: JobArrays, counts: Integers, samples: Integers, largest: int) -> Integers:
    """The nearest batch on each GPU. It is smaller than the job's, because more samples never fit if fewer do not."""
    batch = jobs.batch_size[:, None]
    below = np.minimum(np.minimum(samples, batch - 1), largest // counts).max(axis=1, initial=0)
    return np.where(below == 0, _NOTHING, below)


def _shorter_sample(predictor: Predictor, columns: JobColumns) -> Proposals:
    """Propose the longest samples that fit with the same batch."""
    wanted = columns["tokens_per_sample"]
    placed = inside(predictor, {**columns, "tokens_per_sample": [1] * len(wanted)})
    jobs = placed.jobs
    counts, even, tokens = _tokens_on_counts(predictor, jobs)
    possible = even & jobs.can_split(counts, predictor.domain.max_batch_size)
    samples = np.where(jobs.per_device[:, None], jobs.batch_size[:, None], -(-jobs.batch_size[:, None] // counts))
    longest = np.where(possible, tokens // samples, 0).max(axis=1, initial=0)
    proposed: Proposals = [()] * len(wanted)
    for index, tokens_per_sample in zip(
        placed.positions.tolist(), np.minimum(longest, jobs.max_tokens_per_sample).tolist(), strict=True
    ):
        proposed[index] = (tokens_per_sample,) if 0 < tokens_per_sample < wanted[index] else ()
    return proposed


def _tokens_on_counts(predictor: Predictor, jobs: JobArrays) -> tuple[Integers, Booleans, Integers]:
    """Numbers of GPUs; for each job and number, whether the job may use it, and the most tokens on each GPU."""
    counts, even = even_counts(predictor, jobs)
    return counts, even, edges(predictor, jobs, counts, even)


# --- GPUs -------------------------------------------------------------------------------------------------------------


def _more_gpus(predictor: Predictor, columns: JobColumns) -> Proposals:
    """Propose the smallest number of GPUs that is enough, if only the job's own limit excludes it."""
    most = predictor.domain.max_gpus
    limits = enumerate(column(columns, "max_gpus"))
    proposed: Proposals = [()] * len(columns["model_name"])
    for (index, _, _), gpus, workers in helping(
        predictor, columns, [(index, "max_gpus", most) for index, limit in limits if limit < most]
    ):
        proposed[index] = (gpus * workers,)
    return proposed


def _any_layout(predictor: Predictor, columns: JobColumns) -> Proposals:
    """Layouts that are not even, to jobs that allow even ones only."""
    return [(False,) if even else () for even in column(columns, "even_layouts")]


def _larger_gpu(predictor: Predictor, columns: JobColumns) -> Proposals:
    """Propose the GPU type of which the job needs the fewest, and the smallest type that is enough."""
    totals: dict[int, dict[str, int]] = {}  # GPUs of each job on each type that is enough, least memory first
    tried = [
        (index, "gpu_model", name) for index, types in enumerate(larger_gpus(predictor, columns)) for name in types
    ]
    for (index, _, name), gpus, workers in helping(predictor, columns, tried):
        totals.setdefault(index, {})[name] = gpus * workers
    proposed: Proposals = [()] * len(columns["model_name"])
    for index, needed in totals.items():
        fewest, smallest = min(needed, key=lambda name: needed[name]), next(iter(needed))
        proposed[index] = (fewest,) if fewest == smallest else (fewest, smallest)
    return proposed


def larger_gpus(predictor: Predictor, columns: JobColumns) -> list[list[str]]:
    """For each job, list the GPU types with more memory than its own, least memory first.

    For a type that is too old, newer types with the same memory are included. Types with the same memory have the same
    answers, so only the first one of the domain is listed.
    """
    gpus, names = predictor.domain.gpus, gpu_names(predictor.domain)
    newer = {name: gpu.usable_gib for name, gpu in gpus.items() if not hardware.is_too_old(name, gpu)}
    types = sorted({usable: name for name, usable in reversed(newer.items())}.items())
    found: dict[str, list[str]] = {}
    for written in set(columns["gpu_model"]):
        name = names.find(written)
        least = np.inf if name is None else gpus[name].usable_gib
        found[written] = [other for usable, other in types if usable > least or (usable == least and name not in newer)]
    return [
        found[written]
        if gib is None
        else [other for usable, other in types if usable > gib and other != names.find(written)]
        for written, gib in zip(columns["gpu_model"], column(columns, GPU_MEMORY), strict=True)
    ]


# --- the tables -------------------------------------------------------------------------------------------------------


_SETTINGS: Changes = (
    ("torch_dtype", _setting("torch_dtype", "bfloat16", in_place_of=("float32",))),
    ("gradient_accumulation_steps", _one_step),
    ("loss", _setting("loss", "chunked", in_place_of=("full",))),
    ("gradient_checkpointing", _setting("gradient_checkpointing", "non-reentrant", in_place_of=("none",))),
    ("optim", _setting("optim", "adamw_torch_fused", in_place_of=("adamw_torch",))),
    ("optim", _setting("optim", "adamw_bnb_8bit", in_place_of=("adamw_torch", "adamw_torch_fused"))),
    ("sharding", _setting("sharding", "fsdp2", in_place_of=("ddp",))),
    ("loading", _setting("loading", "cpu", in_place_of=("gpu",))),
    ("allocator", _setting("allocator", "expandable_segments", in_place_of=("default",))),
)
_BATCHES: Changes = (
    ("batch_size", _batch("batch_size", _nearest_batch)),
    ("per_device_train_batch_size", _batch("per_device_train_batch_size", _nearest_on_each)),
)
_SHORTER: Changes = (("tokens_per_sample", _shorter_sample),)
_METHODS: Changes = (
    ("method", _setting("method", "lora", in_place_of=("full",))),
    ("method", _setting("method", "qlora", in_place_of=("full", "lora"))),
)
_GPUS: Changes = (("even_layouts", _any_layout), ("max_gpus", _more_gpus), ("gpu_model", _larger_gpu))

# Changes that people make first come first, the cheapest of them at the front. ``ALL`` takes several times as long.
OF_TABLES: Changes = (*_SETTINGS, *_BATCHES, *_SHORTER)
ALL: Changes = (*_SETTINGS, *_BATCHES, ("lora_r", _lower_rank), *_SHORTER, *_METHODS, *_GPUS)
# The first change of a pair: changes whose value does not follow from a search. The second one is then searched for.
FIRST_OF_TWO: Changes = (*_SETTINGS, *_METHODS)
