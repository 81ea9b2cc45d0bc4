"""Suggest changes that make a rejected job fit: single changes, or pairs if no single change is enough.

Every suggestion has been tried: the changed job gets the layout that the remedy names.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from autoconf.jobs.job import stack_of
from autoconf.jobs.presets import SETTINGS
from autoconf.planner.changes import ALL, FIRST_OF_TWO, Changes, Tried, changed, helping, larger_gpus
from autoconf.planner.domain import JobColumns, value_of
from autoconf.planner.hopeless import possible
from autoconf.planner.results import Change, Remedy
from autoconf.predictor.predictor import Predictor

_MOST_PAIRS = 5  # the most pairs that are suggested


def remedies(predictor: Predictor, columns: JobColumns, changes: Changes) -> list[list[Remedy]]:
    """Find the single changes that help valid jobs without a recommendation, in the order of ``changes``."""
    found: list[list[Remedy]] = [[] for _ in columns["model_name"]]
    tried = possible(predictor, columns, _proposed(predictor, columns, changes))
    for (index, field, value), gpus, workers in helping(predictor, columns, tried):
        found[index].append(Remedy(field, _before(columns, index, field), value, gpus, workers))
    return found


def remedies_of_one(predictor: Predictor, columns: JobColumns) -> list[Remedy]:
    """Find the single changes that help one job without a recommendation, or pairs of changes if no single one does."""
    (found,) = remedies(predictor, columns, ALL)
    return found or _pairs(predictor, columns)


def _proposed(predictor: Predictor, columns: JobColumns, changes: Changes) -> list[Tried]:
    return [
        (index, field, value)
        for field, propose in changes
        for index, values in enumerate(propose(predictor, columns))
        for value in values
    ]


def _pairs(predictor: Predictor, columns: JobColumns) -> list[Remedy]:
    """Find pairs of changes that help one job: for each first change, the second changes that then help."""
    first = _proposed(predictor, columns, FIRST_OF_TWO)
    if value_of(columns, "max_gpus", 0) < predictor.domain.max_gpus:
        first.append((0, "max_gpus", predictor.domain.max_gpus))
    first += [(0, "gpu_model", name) for name in larger_gpus(predictor, columns)[0]]
    found: dict[frozenset[str], Remedy] = {}
    for (_, field, value), seconds in zip(first, remedies(predictor, changed(columns, first), ALL), strict=True):
        for second in seconds:
            if second.field != field:
                # "max_gpus" need not be larger than the number of GPUs that is used.
                chosen = second.gpus * second.workers if field == "max_gpus" else value
                pair = replace(second, also=Change(field, _before(columns, 0, field), chosen))
                found.setdefault(frozenset({field, second.field}), pair)
    return sorted(found.values(), key=_cost)[:_MOST_PAIRS]


def _cost(pair: Remedy) -> tuple[int, ...]:
    """Sort key of pairs: changes that people make first come first; both changes count."""
    order = [field for field, _ in ALL]
    places = [order.index(field) for field in (pair.field, pair.also.field if pair.also else pair.field)]
    return (sum(places), *places)


def _before(columns: JobColumns, index: int, field: str) -> Any:
    """A job's value of a field; for a setting that the job does not have, the value of its stack."""
    if field not in SETTINGS:
        return value_of(columns, field, index)
    return getattr(stack_of({name: values[index] for name, values in columns.items()}), field)
