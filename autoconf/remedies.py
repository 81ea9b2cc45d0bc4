"""What would get a job a recommendation that has none: single changes of it, each asked before it is told.

A new change is one entry of ``CHANGES``: the field, and what to try there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from autoconf.edges import edges
from autoconf.predictors import Predictor
from autoconf.search import Columns, answer, even_counts, inside, pick


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
    found: list[list[Remedy]] = [[] for _ in columns["batch_size"]]
    for field, propose in CHANGES.items():
        values = propose(predictor, columns)
        tried = [index for index, value in enumerate(values) if value is not None]
        changed = {**pick(columns, tried), field: [values[index] for index in tried]}
        for index, answered in zip(tried, answer(predictor, changed), strict=True):
            if answered.gpus is not None and answered.workers is not None:
                remedy = Remedy(field, columns[field][index], values[index], answered.gpus, answered.workers)
                found[index].append(remedy)
    return found


def _one_step(predictor: Predictor, columns: Columns) -> list[int | None]:
    return [1 if steps > 1 else None for steps in columns["gradient_accumulation_steps"]]


def _nearest_batch(predictor: Predictor, columns: Columns) -> list[int | None]:
    """The batch nearest to each job's that some number of GPUs can take; of two as near as each other the larger."""
    jobs, problems = inside(predictor, columns)
    counts, even = even_counts(predictor, jobs)
    batch = jobs.batch_size[:, None]
    tokens = edges(predictor, jobs, counts.max(initial=0))[:, counts - 1]
    samples = np.where(even, tokens // jobs.tokens_per_sample[:, None], 0)
    # A batch of n GPUs is a multiple of n: the nearest ones on either side of the job's.
    below = (counts * np.minimum(samples, batch // counts)).max(axis=1, initial=0)
    more = counts * -(-batch // counts)
    fits = (more <= counts * samples) & (more <= predictor.domain.max_batch_size)
    none = np.iinfo(np.int64).max
    above = more.min(axis=1, where=fits, initial=none)
    nearest = np.where((below == 0) | (above - jobs.batch_size <= jobs.batch_size - below), above, below)
    found = iter(nearest.tolist())
    proposed = [none if problem else next(found) for problem in problems]
    return [None if value == none else value for value in proposed]


# The field, and the value to try there for each job, None where there is nothing to try; cheapest first.
CHANGES: dict[str, Callable[[Predictor, Columns], list[Any]]] = {
    "gradient_accumulation_steps": _one_step,
    "batch_size": _nearest_batch,
}
