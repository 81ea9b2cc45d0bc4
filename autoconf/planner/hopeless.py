"""Leave out changes of jobs that cannot help, before the changed jobs are composed and tried."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoconf.jobs.job import IMAGES
from autoconf.memory.candidates import Candidates
from autoconf.memory.gpu_memory import GpuMemory
from autoconf.memory.model import StackMemory
from autoconf.memory.units import GIB, Booleans, Floats
from autoconf.planner.changes import Tried
from autoconf.planner.domain import JobArrays, JobColumns, inside
from autoconf.planner.rules import passing
from autoconf.planner.search import ends, even_counts
from autoconf.predictor.predictor import Predictor

# The parts of memory that a change of a field may lower. Any part may fall with fields that are not listed.
_LOWERED: dict[str, tuple[str, ...]] = {
    "optim": ("optimizer",),
    "gradient_accumulation_steps": ("gradients",),
    "loss": ("activations", "gradients"),
    "gradient_checkpointing": ("activations", "gradients", "gathered"),
    "loading": (),
    "allocator": (),
}
_STATES = ("gradients", "optimizer")


def possible(predictor: Predictor, columns: JobColumns, tried: Sequence[Tried]) -> list[Tried]:
    """The changes without those that cannot help: what their job holds besides the changed parts does not fit.

    Args:
        predictor: the version.
        columns: valid jobs without a recommendation.
        tried: changes of these jobs.
    """
    fields = {field for _, field, _ in tried} & _LOWERED.keys()
    if not isinstance(predictor.memory, StackMemory) or not fields or any(columns.get(IMAGES, ())):
        return list(tried)  # pixels of all micro-batches of a step count as activations
    placed = inside(predictor, columns)
    if not len(placed.positions):
        return list(tried)
    order = sorted(fields)
    leaves_room = _leaves_room(predictor, predictor.memory, placed.jobs, [_LOWERED[field] for field in order])
    hopeless = {
        (position, field)
        for field, some in zip(order, leaves_room, strict=True)
        for position in placed.positions[~some].tolist()
    }
    return [change for change in tried if change[:2] not in hopeless]


def _leaves_room(
    predictor: Predictor, memory: StackMemory, jobs: JobArrays, lowered: Sequence[tuple[str, ...]]
) -> Booleans:
    """Whether each job fits without some of its parts and without a margin, on any of its numbers of GPUs.

    Args:
        predictor: the version.
        memory: its memory model.
        jobs: the jobs.
        lowered: the parts that do not count.

    Returns:
        Shape (lowered, jobs).
    """
    counts, even = even_counts(predictor, jobs)
    allowed = even & jobs.can_split(counts, predictor.domain.max_batch_size)
    job, place = np.nonzero(ends(memory, jobs, counts, allowed))
    candidates = jobs.candidates(memory, job, counts[place])
    several = candidates.gpus > 1
    below = np.where(several, predictor.step(True).below, predictor.step(False).below)
    room = predictor.for_pytorch_gib(candidates.usable_gib, candidates.gpus) - below
    found = np.zeros((len(lowered), len(jobs.rows)), bool)
    for index, fits in enumerate(_floors_gib(memory, candidates, lowered) < room):
        found[index, job[fits]] = True
    return found


def _floors_gib(memory: StackMemory, candidates: Candidates, lowered: Sequence[tuple[str, ...]]) -> Floats:
    """GiB of each candidate without some of its parts, at least, shape (lowered, candidates)."""
    rows, gpus = candidates.rows, candidates.gpus
    held, states = (memory.resident_bytes(rows, gpus, states=only) / GIB for only in (False, True))
    found = np.stack([held - states * any(part in _STATES for part in parts) for parts in lowered])
    rest = passing(candidates)  # the memory of the others need not be composed
    kept = np.array([[part not in parts for part in GpuMemory.PARTS] for parts in lowered], float)
    found[:, rest] = memory.floors_gib(rows[rest], gpus[rest], candidates.tokens_per_gpu[rest], kept)
    return found
