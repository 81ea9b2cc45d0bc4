"""Find the largest micro-batch, in tokens, that fits on each GPU.

More tokens never turn "does not fit" into "fits", so this number decides which batches and which samples fit.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from autoconf.memory.candidates import Candidates
from autoconf.memory.units import Floats, Integers
from autoconf.planner.domain import JobArrays
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
    while len(open_ := np.flatnonzero(fitting < at_most)):
        points = min(max(_ANSWERS // len(open_), 1), _POINTS)
        low, high = fitting[open_, None], at_most[open_, None]
        step = -((low - high) // (points + 1))  # rounded up
        tokens = np.minimum(low + step * np.arange(1, points + 1), high)
        tried = np.repeat(open_, points)
        candidates = Candidates(predictor.memory, rows[tried], gpus[tried], tokens.ravel() * 1.0, usable_gib[tried])
        fits = decide(predictor, candidates).reshape(tokens.shape).sum(axis=1)
        bounds = np.concatenate([low, tokens, high + 1], axis=1)  # the first is known to fit, the last is not
        places = np.arange(len(open_))
        fitting[open_], at_most[open_] = bounds[places, fits], bounds[places, fits + 1] - 1
    return fitting


def edges(predictor: Predictor, jobs: JobArrays, most_gpus: int) -> Integers:
    """``most_tokens`` of each job on 1 to ``most_gpus`` GPUs, shape (jobs, GPUs)."""
    known = _known(predictor)
    alike = zip(jobs.rows.tolist(), jobs.usable_gib.tolist(), strict=True)
    keys = [(row, usable, most_gpus) for row, usable in alike]
    if new := [key for key in dict.fromkeys(keys) if key not in known]:
        rows, usable_gib, _ = (np.repeat(values, most_gpus) for values in zip(*new, strict=True))
        gpus = np.tile(np.arange(1, most_gpus + 1), len(new))
        known.update(zip(new, most_tokens(predictor, rows, usable_gib, gpus).reshape(len(new), -1), strict=True))
    return np.array([known[key] for key in keys], np.int64).reshape(len(keys), most_gpus)


@lru_cache(maxsize=8)
def _known(predictor: Predictor) -> dict[tuple[int, float, int], Integers]:
    """The cache of a version's edges, shared by the jobs of a table and by later calls."""
    return {}
