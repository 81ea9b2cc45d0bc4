"""What would get a job a recommendation that has none: single changes of it, each asked before it is told.

A new change is one entry of the tables at the end: the field, and what to try there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from autoconf.jobs.job import STACK_FIELDS, stack_of
from autoconf.jobs.names import key
from autoconf.jobs.presets import SETTINGS
from autoconf.memory.units import Integers
from autoconf.planner.domain import JobColumns, column, inside, pick
from autoconf.planner.frontier import edges
from autoconf.planner.results import Remedy
from autoconf.planner.search import even_counts, recommendations
from autoconf.predictor.predictor import Predictor

# For each job the values to try; none where there is nothing to try.
Propose = Callable[[Predictor, JobColumns], list[tuple[Any, ...]]]
Changes = tuple[tuple[str, Propose], ...]
Change = tuple[int, str, Any]  # a job's place among some, the field, its value
_NOTHING = np.iinfo(np.int64).max
_AT_ONCE = 50_000  # changed jobs that are asked for in one call: bounds the memory that candidates take


def remedies(predictor: Predictor, columns: JobColumns, changes: Changes) -> list[list[Remedy]]:
    """The single changes that help, cheapest first, for each of some valid jobs that have no recommendation."""
    found: list[list[Remedy]] = [[] for _ in columns["model_name"]]
    proposed = [
        (index, field, value)
        for field, propose in changes
        for index, values in enumerate(propose(predictor, columns))
        for value in values
    ]
    for (index, field, value), (gpus, workers) in _layouts(predictor, columns, proposed):
        found[index].append(Remedy(field, _before(columns, index, field), value, gpus, workers))
    return found


def _layouts(
    predictor: Predictor, columns: JobColumns, changes: Sequence[Change]
) -> Iterator[tuple[Change, tuple[int, int]]]:
    """The changes that help, with the GPUs per worker and the workers that they lead to."""
    for start in range(0, len(changes), _AT_ONCE):
        some = changes[start : start + _AT_ONCE]
        for change, said in zip(some, recommendations(predictor, _changed(columns, some)), strict=True):
            if said.gpus is not None and said.workers is not None:
                yield change, (said.gpus, said.workers)


def _changed(columns: JobColumns, changes: Sequence[Change]) -> JobColumns:
    """Jobs, each with one change."""
    changed = pick(columns, [index for index, _, _ in changes])
    for field in {field for _, field, _ in changes}:
        changed[field] = list(column(changed, field))
    for place, (_, field, value) in enumerate(changes):
        changed[field][place] = value
    return changed


def _before(columns: JobColumns, index: int, field: str) -> Any:
    """What a job has in a field; of a setting that it leaves to its stack, the stack's."""
    if field not in SETTINGS:
        return column(columns, field)[index]
    return getattr(stack_of({name: values[index] for name, values in columns.items()}), field)


def _one_step(predictor: Predictor, columns: JobColumns) -> list[tuple[int, ...]]:
    return [(1,) if steps > 1 else () for steps in column(columns, "gradient_accumulation_steps")]


def _setting(field: str, value: str, *, in_place_of: tuple[str, ...]) -> Propose:
    """Propose a setting, or a method, to jobs that train with one of some others."""

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

    def propose(predictor: Predictor, columns: JobColumns) -> list[tuple[str, ...]]:
        if field == "method" and value not in predictor.domain.methods:
            return [()] * len(columns["method"])
        return [proposed(*job) for job in zip(*(column(columns, name) for name in STACK_FIELDS), strict=True)]

    return propose


def _batch(field: str, nearest: Callable[[Integers, Integers, Integers, int], Integers]) -> Propose:
    """Propose to jobs that have such a batch the nearest one that some number of GPUs can take."""

    def propose(predictor: Predictor, columns: JobColumns) -> list[tuple[int, ...]]:
        proposed: list[tuple[int, ...]] = [()] * len(columns["model_name"])
        stated = [index for index, batch in enumerate(column(columns, field)) if batch is not None]
        if not stated:
            return proposed
        placed = inside(predictor, pick(columns, stated))
        jobs = placed.jobs
        counts, even = even_counts(predictor, jobs)
        tokens = edges(predictor, jobs, counts.max(initial=0))[:, counts - 1]
        samples = np.where(even, tokens // jobs.tokens_per_sample[:, None], 0)
        found = nearest(jobs.batch_size[:, None], counts, samples, predictor.domain.max_batch_size).tolist()
        for position, value in zip(placed.positions.tolist(), found, strict=True):
            proposed[stated[position]] = () if value == _NOTHING else (value,)
        return proposed

    return propose


def _nearest_batch(batch: Integers, counts: Integers, samples: Integers, largest: int) -> Integers:
    """The nearest of all GPUs' batches; of two as near as each other the larger."""
    # A batch of n GPUs is a multiple of n: the nearest ones on either side of the job's.
    below = (counts * np.minimum(samples, batch // counts)).max(axis=1, initial=0)
    more = counts * -(-batch // counts)
    fits = (more <= counts * samples) & (more <= largest)
    above = more.min(axis=1, where=fits, initial=_NOTHING)
    return np.where((below == 0) | (above - batch[:, 0] <= batch[:, 0] - below), above, below)


def _nearest_on_each(batch: Integers, counts: Integers, samples: Integers, largest: int) -> Integers:
    """The nearest of each GPU's batches: more samples never fit where fewer do not."""
    below = np.minimum(np.minimum(samples, batch - 1), largest // counts).max(axis=1, initial=0)
    return np.where(below == 0, _NOTHING, below)


def _longer_list(predictor: Predictor, columns: JobColumns) -> list[tuple[int, ...]]:
    """The smallest number of GPUs that does it, where only the job's own limit is in the way."""
    proposed: list[tuple[int, ...]] = [()] * len(columns["model_name"])
    most = predictor.domain.max_gpus
    limits = enumerate(column(columns, "max_gpus"))
    longest = [(index, "max_gpus", most) for index, limit in limits if limit < most]
    for (index, _, _), (gpus, workers) in _layouts(predictor, columns, longest):
        proposed[index] = (gpus * workers,)
    return proposed


def _larger_gpus(predictor: Predictor, columns: JobColumns) -> list[tuple[str, ...]]:
    """Of the types of GPU with more memory the one that needs the fewest, and the smallest that does it at all.

    Of types with the same memory, to which the answers are the same, the domain's first stands for all.
    """
    memory = {name: gpu.usable_gib for name, gpu in predictor.domain.gpus.items()}
    types = sorted({usable: name for name, usable in reversed(memory.items())}.items())
    placed = inside(predictor, columns)
    larger = [
        (index, "gpu_model", name)
        for index, has in zip(placed.positions.tolist(), placed.jobs.usable_gib.tolist(), strict=True)
        for usable, name in types
        if usable > has
    ]
    totals: dict[int, dict[str, int]] = {}  # of each job, by the types that do it, least memory first
    for (index, _, name), (gpus, workers) in _layouts(predictor, columns, larger):
        totals.setdefault(index, {})[name] = gpus * workers
    proposed: list[tuple[str, ...]] = [()] * len(columns["model_name"])
    for index, needed in totals.items():
        fewest, smallest = min(needed, key=lambda name: needed[name]), next(iter(needed))
        proposed[index] = (fewest,) if fewest == smallest else (fewest, smallest)
    return proposed


# The field, and what to try there.
_SETTINGS: Changes = (
    ("gradient_accumulation_steps", _one_step),
    ("loss", _setting("loss", "chunked", in_place_of=("full",))),
    ("gradient_checkpointing", _setting("gradient_checkpointing", "non-reentrant", in_place_of=("none",))),
    ("optim", _setting("optim", "adamw_torch_fused", in_place_of=("adamw_torch",))),
    ("optim", _setting("optim", "adamw_bnb_8bit", in_place_of=("adamw_torch", "adamw_torch_fused"))),
    ("sharding", _setting("sharding", "fsdp2", in_place_of=("ddp",))),
)
_METHODS: Changes = (
    ("method", _setting("method", "lora", in_place_of=("full",))),
    ("method", _setting("method", "qlora", in_place_of=("full", "lora"))),
)
_BATCHES: Changes = (
    ("batch_size", _batch("batch_size", _nearest_batch)),
    ("per_device_train_batch_size", _batch("per_device_train_batch_size", _nearest_on_each)),
)
_GPUS: Changes = (("max_gpus", _longer_list), ("gpu_model", _larger_gpus))

# Cheapest first. A table's reasons tell but the first: asking all of them of 50,000 jobs takes five times as long.
CHANGES = (*_SETTINGS, *_BATCHES)
ALL_CHANGES = (*_SETTINGS, *_METHODS, *_BATCHES, *_GPUS)
