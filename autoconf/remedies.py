"""What would get a job a recommendation that has none: single changes of it, each asked before it is told.

A new change is one entry of ``CHANGES``: the field, and what to try there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from autoconf.edges import edges
from autoconf.memory import Integers
from autoconf.predictors import Predictor
from autoconf.presets import SETTINGS
from autoconf.search import Columns, answer, column, even_counts, inside, pick
from autoconf.workload import STACK_FIELDS, stack_of

# For each job the value to try, None where there is nothing to try.
Propose = Callable[[Predictor, Columns], list[Any]]
_NOTHING = np.iinfo(np.int64).max
_AT_ONCE = 50_000  # changed jobs that are asked for in one call: bounds the memory that candidates take


@dataclass(frozen=True)
class Remedy:
    """A change of one field with which a job gets a recommendation, and the layout that it then gets.

    >>> print(Remedy("batch_size", 7, 8, gpus=8, workers=1))
    batch_size=8 would do, on 8 GPUs (8 does not divide 7)
    >>> print(Remedy("gradient_accumulation_steps", 4, 1, gpus=8, workers=2))
    gradient_accumulation_steps=1 would do, on 2 workers of 8 GPUs
    """

    field: str
    before: Any
    value: Any
    gpus: int  # per worker
    workers: int

    def __str__(self) -> str:
        unit = "GPU" if self.gpus == 1 else "GPUs"
        layout = f"{self.gpus} {unit}" if self.workers == 1 else f"{self.workers} workers of {self.gpus} {unit}"
        total = self.gpus * self.workers
        indivisible = self.field == "batch_size" and self.before % total
        why = f" ({total} does not divide {self.before})" if indivisible else ""
        return f"{self.field}={self.value} would do, on {layout}{why}"


def remedies(predictor: Predictor, columns: Columns) -> list[list[Remedy]]:
    """The single changes that help, for each of some valid jobs that have no recommendation."""
    found: list[list[Remedy]] = [[] for _ in columns["model_name"]]
    changes = [
        (index, field, value)
        for field, propose in CHANGES
        for index, value in enumerate(propose(predictor, columns))
        if value is not None
    ]
    for start in range(0, len(changes), _AT_ONCE):
        some = changes[start : start + _AT_ONCE]
        for (index, field, value), said in zip(some, answer(predictor, _changed(columns, some)), strict=True):
            if said.gpus is not None and said.workers is not None:
                found[index].append(Remedy(field, _before(columns, index, field), value, said.gpus, said.workers))
    return found


def _changed(columns: Columns, changes: Sequence[tuple[int, str, Any]]) -> Columns:
    """Jobs, each with one change: the job's place among some, the field, its value."""
    changed = pick(columns, [index for index, _, _ in changes])
    for field in {field for _, field, _ in changes}:
        changed[field] = list(column(changed, field))
    for place, (_, field, value) in enumerate(changes):
        changed[field][place] = value
    return changed


def _before(columns: Columns, index: int, field: str) -> Any:
    """What a job has in a field; of a setting that it leaves to its stack, the stack's."""
    if field not in SETTINGS:
        return column(columns, field)[index]
    return getattr(stack_of({name: values[index] for name, values in columns.items()}), field)


def _one_step(predictor: Predictor, columns: Columns) -> list[Any]:
    return [1 if steps > 1 else None for steps in column(columns, "gradient_accumulation_steps")]


def _setting(field: str, value: str, *, in_place_of: tuple[str, ...]) -> Propose:
    """Propose a setting to jobs that train with one of some others."""

    @lru_cache(maxsize=65_536)  # jobs of a table share few stacks
    def proposed(*job: Any) -> str | None:
        fields = dict(zip(STACK_FIELDS, job, strict=True))
        if getattr(stack_of(fields), field) not in in_place_of:
            return None
        try:
            stack_of({**fields, field: value})
        except ValueError:  # another setting excludes it
            return None
        return value

    def propose(predictor: Predictor, columns: Columns) -> list[Any]:
        return [proposed(*job) for job in zip(*(column(columns, name) for name in STACK_FIELDS), strict=True)]

    return propose


def _batch(field: str, nearest: Callable[[Integers, Integers, Integers, int], Integers]) -> Propose:
    """Propose to jobs that have such a batch the nearest one that some number of GPUs can take."""

    def propose(predictor: Predictor, columns: Columns) -> list[Any]:
        proposed = list(column(columns, field))
        stated = [index for index, batch in enumerate(proposed) if batch is not None]
        if not stated:
            return proposed
        jobs, problems = inside(predictor, pick(columns, stated))
        counts, even = even_counts(predictor, jobs)
        tokens = edges(predictor, jobs, counts.max(initial=0))[:, counts - 1]
        samples = np.where(even, tokens // jobs.tokens_per_sample[:, None], 0)
        found = iter(nearest(jobs.batch_size[:, None], counts, samples, predictor.domain.max_batch_size).tolist())
        for index, problem in zip(stated, problems, strict=True):
            value = _NOTHING if problem else next(found)
            proposed[index] = None if value == _NOTHING else value
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


# The field, and what to try there; cheapest first.
CHANGES: tuple[tuple[str, Propose], ...] = (
    ("gradient_accumulation_steps", _one_step),
    ("loss", _setting("loss", "chunked", in_place_of=("full",))),
    ("gradient_checkpointing", _setting("gradient_checkpointing", "non-reentrant", in_place_of=("none",))),
    ("optim", _setting("optim", "adamw_torch_fused", in_place_of=("adamw_torch",))),
    ("optim", _setting("optim", "adamw_bnb_8bit", in_place_of=("adamw_torch", "adamw_torch_fused"))),
    ("sharding", _setting("sharding", "fsdp2", in_place_of=("ddp",))),
    ("batch_size", _batch("batch_size", _nearest_batch)),
    ("per_device_train_batch_size", _batch("per_device_train_batch_size", _nearest_on_each)),
)
