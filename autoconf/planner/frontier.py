"""Find the largest micro-batch, in tokens, that fits on each GPU.

More tokens never turn "does not fit" into "fits", so this number decides which batches and which samples fit.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from autoconf.memory.candidates import Candidates
from autoconf.memory.model import StackMemory
from autoconf.memory.units import Booleans, Floats, Integers
from autoconf.planner.domain import JobArrays
from autoconf.planner.rules import passing
from autoconf.planner.search import decide
from autoconf.predictor.predictor import Predictor

# A call of the predictor costs as much as a few hundred of its answers, so a search for few values tries many points in
# each call.
_POINTS, _ANSWERS = 16, 512


def most_tokens(predictor: Predictor, rows: Integers, usable_gib: Floats, gpus: Integers) -> Integers:
    """Find the most tokens that fit on each GPU.

    Args:
        rows: rows of the version's memory model; all arrays have shape (candidates,).
        usable_gib: usable memory of one GPU, in GiB.
        gpus: number of GPUs, >= 1.

    Returns:
        Tokens, at most those of the domain's largest job; 0 if not even one token fits. Shape (candidates,).
    """
    fitting = np.zeros(len(rows), np.int64)
    at_most = np.full(len(rows), predictor.domain.max_tokens_per_sample * predictor.domain.max_batch_size)
    tokens = _estimated(predictor, rows, usable_gib, gpus, at_most)
    while len(open_ := np.flatnonzero(fitting < at_most)):
        low, high = fitting[open_, None], at_most[open_, None]
        if tokens is None:
            points = min(max(_ANSWERS // len(open_), 1), _POINTS)
            step = -((low - high) // (points + 1))  # rounded up
            tokens = np.minimum(low + step * np.arange(1, points + 1), high)
        points = tokens.shape[1]
        tried = np.repeat(open_, points)
        candidates = Candidates(
            predictor.memory, rows[tried], gpus[tried], tokens.ravel().astype(float), usable_gib[tried]
        )
        fits = decide(predictor, candidates).reshape(tokens.shape).sum(axis=1)
        bounds = np.concatenate([low, tokens, high + 1], axis=1)  # the first is known to fit, the last is not
        places = np.arange(len(open_))
        fitting[open_], at_most[open_] = bounds[places, fits], bounds[places, fits + 1] - 1
        tokens = None
    return fitting


def _estimated(
    predictor: Predictor, rows: Integers, usable_gib: Floats, gpus: Integers, at_most: Integers
) -> Integers | None:
    """The two numbers of tokens, shape (candidates, 2), between which the edge most likely is; ``None`` if unknown."""
    memory, reserve = predictor.memory, predictor.card.reserve
    if not isinstance(memory, StackMemory) or reserve is None:
        return None
    possible = passing(Candidates(memory, rows, gpus, np.zeros(len(rows)), usable_gib))
    found = np.zeros((len(rows), 2))
    steps = zip(predictor.step(True), predictor.step(False), strict=True)
    above_and_below = np.stack([np.where(gpus > 1, *both) for both in steps])[::-1]
    gib = (predictor.for_pytorch_gib(usable_gib, gpus) - above_and_below)[:, possible]
    found[possible] = memory.most_tokens(rows[possible], gpus[possible], gib, reserve).T
    found[:, 1] = np.maximum(found[:, 0], found[:, 1]) + 1
    return np.clip(found, 1, at_most[:, None]).astype(np.int64)


def edges(predictor: Predictor, jobs: JobArrays, counts: Integers, wanted: Booleans) -> Integers:
    """``most_tokens`` of each job on numbers of GPUs.

    Args:
        predictor: the version.
        jobs: the jobs.
        counts: numbers of GPUs, shape (counts,).
        wanted: whether each job needs each of them, shape (jobs, counts).

    Returns:
        Tokens, shape (jobs, counts); any number where none is wanted.
    """
    known, most = _known(predictor), predictor.domain.max_gpus
    distinct: dict[tuple[int, float], int] = {}  # jobs of a table have few rows and GPU types
    alike = zip(jobs.rows.tolist(), jobs.usable_gib.tolist(), strict=True)
    places = np.array([distinct.setdefault(key, len(distinct)) for key in alike], np.int64)
    unknown = np.full(most, _UNKNOWN)
    tokens = np.array([known.get(key, unknown) for key in distinct]).reshape(-1, most)
    job, count = np.nonzero(wanted)
    new = np.zeros(tokens.shape, bool)
    new[places[job], counts[count] - 1] = True
    place, column = np.nonzero(new & (tokens == _UNKNOWN))
    if len(place):
        rows, usable_gib = (np.array(values)[place] for values in zip(*distinct, strict=True))
        tokens[place, column] = most_tokens(predictor, rows, usable_gib, column + 1)
        known.update(zip(distinct, tokens, strict=True))
    return tokens[places[:, None], counts - 1]


_UNKNOWN = -1


@lru_cache(maxsize=8)
def _known(predictor: Predictor) -> dict[tuple[int, float], Integers]:
    """The cache of a version's edges by row and usable GiB, shared by the jobs of a table and by later calls."""
    return {}


def forget() -> None:
    """Drop the edges of all versions."""
    _known.cache_clear()
