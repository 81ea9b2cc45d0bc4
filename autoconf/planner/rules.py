"""Rules: filters that need no predictor. Each rule takes candidates and returns whether each of them passes.

A candidate is one job on one number of GPUs. For every rule, a function explains why candidates fail it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from autoconf.jobs.job import HOST_LIMIT
from autoconf.memory.candidates import Candidates
from autoconf.memory.model import StackMemory
from autoconf.memory.units import GIB, Booleans
from autoconf.memory.ways import LOADS


def gradients_fit(candidates: Candidates) -> Booleans:
    """Check the unsharded gradients that FSDP keeps on every GPU between micro-batches, in addition to the shards."""
    memory, rows = candidates.memory, candidates.rows
    sharded = memory.resident_bytes(rows, candidates.gpus)
    shard_of_gradients = memory.gradient_bytes(rows) / candidates.gpus
    whole = np.where(candidates.gpus > 1, memory.gradient_bytes(rows) - shard_of_gradients, 0.0)
    return sharded + whole <= candidates.usable_gib * GIB


def resident_state_fits(candidates: Candidates) -> Booleans:
    """Check that weights, gradients and optimizer states fit when all of them are sharded."""
    resident = candidates.memory.resident_bytes(candidates.rows, candidates.gpus)
    return resident <= candidates.usable_gib * GIB


def loading_fits(candidates: Candidates) -> Booleans:
    """Check what each GPU holds while a model is loaded."""
    memory = candidates.memory
    if not isinstance(memory, StackMemory) or memory.rules < LOADS:
        return np.ones(len(candidates.rows), bool)
    usable, gpus = candidates.usable_gib, candidates.gpus
    left = usable if memory.outside is None else memory.outside.left_gib(usable, gpus)
    fits: Booleans = memory.loading_bytes(candidates.rows, gpus) <= left * GIB
    return fits


def host_fits(candidates: Candidates) -> Booleans:
    """Check the memory of a worker's host, if a job has a limit of it."""
    if candidates.host_limit_gib is None:
        return np.ones(len(candidates.rows), bool)
    fits: Booleans = candidates.host_gib() <= candidates.host_limit_gib
    return fits


def on_each(gpus: int) -> str:
    """Name the GPUs of a job in a sentence.

    >>> on_each(1), on_each(4)
    ('on 1 GPU', 'on each of 4 GPUs')
    """
    return "on 1 GPU" if gpus == 1 else f"on each of {gpus} GPUs"


def _why_resident_state(candidates: Candidates) -> list[str]:
    resident = candidates.memory.resident_bytes(candidates.rows, candidates.gpus) / GIB
    return [
        f"weights, gradients and optimizer state alone take {needed:.1f} GiB {on_each(gpus)}, "
        f"and one has {usable:g} GiB"
        for needed, gpus, usable in zip(resident, candidates.gpus, candidates.usable_gib, strict=True)
    ]


def _why_gradients(candidates: Candidates) -> list[str]:
    gradients = candidates.memory.gradient_bytes(candidates.rows) / GIB
    return [
        f"gradient accumulation keeps {needed:.1f} GiB of unsharded gradients on every GPU, and one has {usable:g} GiB"
        for needed, usable in zip(gradients, candidates.usable_gib, strict=True)
    ]


def _why_loading(candidates: Candidates) -> list[str]:
    assert isinstance(candidates.memory, StackMemory)
    place = candidates.rows, candidates.gpus
    loading, texts = candidates.memory.loading_bytes(*place) / GIB, candidates.memory.loading_texts(*place)
    return [
        f"runs out of memory while loading: each GPU holds {what}, {needed:.1f} GiB, and one has {usable:g} GiB"
        for what, needed, usable in zip(texts, loading, candidates.usable_gib, strict=True)
    ]


def _why_host(candidates: Candidates) -> list[str]:
    assert candidates.host_limit_gib is not None and candidates.on_worker is not None
    each = zip(candidates.host_gib(), candidates.on_worker, candidates.host_limit_gib, strict=True)
    return [
        f"the host of a worker holds {gib:.1f} GiB for {'1 GPU' if count == 1 else f'{count} GPUs'}, and {HOST_LIMIT} "
        f"is {limit:g}"
        for gib, count, limit in each
    ]


# In the order in which they are tried; the first rule that a candidate fails gives the reason.
RULES: tuple[tuple[Callable[[Candidates], Booleans], Callable[[Candidates], list[str]]], ...] = (
    (resident_state_fits, _why_resident_state),
    (gradients_fit, _why_gradients),
    (loading_fits, _why_loading),
    (host_fits, _why_host),
)


def passing(candidates: Candidates) -> Booleans:
    """Whether each candidate passes every rule, shape (candidates,)."""
    limited = candidates.host_limit_gib is not None
    passed: Booleans = np.logical_and.reduce(
        [rule(candidates) for rule, _ in RULES if limited or rule is not host_fits]
    )
    return passed


def reasons(candidates: Candidates) -> list[str]:
    """The reason why each candidate fails the rules; empty text if it passes."""
    sentences = [""] * len(candidates.rows)
    for rule, why in reversed(RULES):
        failing = np.flatnonzero(~rule(candidates))
        for index, sentence in zip(failing, why(candidates.subset(failing)) if len(failing) else (), strict=True):
            sentences[index] = sentence
    return sentences
