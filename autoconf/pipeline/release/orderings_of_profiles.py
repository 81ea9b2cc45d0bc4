"""Orderings that hold for the profiles of models themselves, before the memory of a job is composed of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from autoconf.jobs.stack import Optim
from autoconf.memory.optimizers import optimizer_bytes
from autoconf.memory.profile import IN_ORDER, HeadWay, LayerWay, Point, StackMoment
from autoconf.memory.store import ModelsTable

_TOLERANCE = 1e-6  # figures are stored with seven digits

Violations = Iterator[str]  # empty text for an ordered pair


def never_negative(table: ModelsTable, columns: tuple[str, ...]) -> Violations:
    """Check that no term of any moment is negative, so that no sum falls as tokens, rank or 1 / GPUs grow."""
    at = [StackMoment._fields.index(name) for name in columns]
    for model, ways in all_ways(table):
        for way in ways:
            moments = table.moments(model, way)
            yield f"{model}, {way}" if moments is None or (moments[:, at] < 0).any() else ""


def all_ways(table: ModelsTable) -> Iterator[tuple[str, list[LayerWay | HeadWay]]]:
    """The models of a table with the ways under which each was traced."""
    for model in table.models:
        yield model, table.ways(model)


def checkpointing(table: ModelsTable) -> Violations:
    """Moments with checkpointing are among those without; the tensors kept for the head must be smaller."""
    for model, ways in all_ways(table):
        for way in ways:
            if isinstance(way, LayerWay) and way.gradient_checkpointing != "none":
                without = way._replace(gradient_checkpointing="none")
                in_order = without._replace(lora_targets=way.lora_targets + IN_ORDER)
                kept = [
                    [rows[rows[:, 0] == point][0, 1:5] for point in (Point.KEPT, Point.KEPT_OVER)]
                    for of in (way, in_order if in_order in ways else without)
                    if (rows := table.moments(model, of)) is not None
                ]
                if len(kept) == 2:
                    less = (np.array(kept[0]) <= np.array(kept[1]) * (1 + _TOLERANCE)).all()
                    yield "" if less else f"{model}, {way}"


def optimizers(table: ModelsTable, better: Optim, itemsizes: tuple[int, ...]) -> Violations:
    """Optimizers differ only in states and temporaries, which are added to all other memory."""
    for model in table.models:
        for method, targets in table.trainables(model):
            trainable = table.trainable(model, method, targets)
            assert trainable is not None
            for itemsize in itemsizes:
                shapes = [shape._replace(itemsize=itemsize) for shape, count in trainable.shapes for _ in range(count)]
                less, more = optimizer_bytes(better, shapes), optimizer_bytes("adamw_torch", shapes)
                broken = less.states > more.states or less.step > more.step
                yield f"{model}, {method}, {targets}, {itemsize} bytes" if broken else ""


def chunked(table: ModelsTable, trains: bool, loss: str, tokens: int) -> Violations:
    """Compare at each point of the head, where gathered parameters are the same."""
    for model, ways in all_ways(table):
        for way in ways:
            if isinstance(way, HeadWay) and (way.trains, way.loss) == (trains, loss):
                heads = [table.moments(model, of) for of in (way, way._replace(loss="full"))]
                points = (Point.HEAD, Point.TURN, Point.LOSS)
                yield f"{model}, {way}" if any(_exceeds_at(point, tokens, *heads) for point in points) else ""


def _exceeds_at(point: Point, from_tokens: int, one: Any, other: Any) -> bool:
    """Whether one head holds more than another at a point, from a number of tokens on."""
    tokens = np.geomspace(from_tokens, 2**30, 60)
    points = (point, Point.HEAD_OVER) if point == Point.HEAD else (point,)
    held = [rows[np.isin(rows[:, 0], points)] for rows in (one, other)]
    most = [(rows[:, 1:2] + rows[:, 5:6] + rows[:, 2:3] * tokens).max(axis=0) for rows in held]
    return bool((most[0] > most[1] * (1 + _TOLERANCE)).any())
