"""Decide whether a recorded program runs on a GPU, with the smallest capacity that it needs and where it fails."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from autoconf.memory.allocator_settings import AllocatorSettings
from autoconf.memory.loading import LOADING
from autoconf.memory.replay import Place, Program, Replayed, least_capacity, replay
from autoconf.memory.units import GIB, Integers
from autoconf.pipeline.replay import outside_pytorch


def overhead_gib(gpus: int, gpu_type: str | None = None) -> float:
    """The GiB of a GPU outside PyTorch to expect, measured in public reports.

    It is a high percentile, not the typical figure: with too little, a job that runs out of memory would count as
    fitting. See ``outside_pytorch.overhead``.

    Args:
        gpus: number of GPUs of the job.
        gpu_type: name of a type in ``gpus.yaml``; ``None`` for the figure of all types.

    >>> overhead_gib(1, "L40S") < overhead_gib(4, "L40S")
    True
    """
    return outside_pytorch.overhead(gpus, gpu_type).gib


@dataclass(frozen=True)
class Verdict:
    """The result of a replay of a job on a GPU; memory in GiB.

    Attributes:
        peak_memory_gib: peak of allocated memory.
        peak_loading_gib: peak of allocated memory while the job is loaded.
        peak_reserved_gib: peak of reserved memory without a limit.
        least_capacity_gib: the smallest memory that PyTorch's allocator must be able to reserve.
        fragmentation_gib: the part of it that is not allocated at the peak.
        overhead_gib: memory outside PyTorch.
        needed_memory_gib: least capacity plus overhead.
        usable_memory_gib: usable memory of the GPU.
        fits: 1 if that is enough, else 0.
        failure: when and where the job runs out of memory on this GPU, in a sentence; empty if it fits.
        fails_at: step, part of the model, module and op that run out of memory on this GPU; empty if it fits.
        error: PyTorch's message for it.
        expandable_segments_gib: needed memory with expandable_segments:True.
        expandable_segments_help: whether the job fits only with them.
        touchy: whether it would also run at some smaller capacity, although it fails in between.
    """

    peak_memory_gib: float
    peak_loading_gib: float
    peak_reserved_gib: float
    least_capacity_gib: float
    fragmentation_gib: float
    overhead_gib: float
    needed_memory_gib: float
    usable_memory_gib: float
    fits: int
    failure: str
    fails_at: str
    error: str
    expandable_segments_gib: float
    expandable_segments_help: bool
    touchy: bool


@dataclass(frozen=True)
class Timeline:
    """Memory over the events of a program; arrays have shape (events,), in bytes.

    Attributes:
        allocated: allocated memory without a limit.
        reserved: reserved memory on the GPU, up to the event that failed.
        free_reserved: reserved memory without a limit.
        steps: name and first event of loading and of each step.
        failed_at: event and place that ran out of memory.
    """

    allocated: Integers
    reserved: Integers
    free_reserved: Integers
    steps: tuple[tuple[str, int], ...]
    failed_at: tuple[int, Place] | None


def judge(
    program: Program, usable_gib: float, overhead: float, settings: AllocatorSettings | None = None
) -> tuple[Verdict, Timeline]:
    """Replay a program on a GPU.

    Args:
        program: the allocations of a job.
        usable_gib: usable memory of the GPU that CUDA reports.
        overhead: GiB of it outside PyTorch.
        settings: settings of PyTorch's allocator.
    """
    settings = settings or AllocatorSettings()
    free = replay(program, settings=settings, timeline=True)
    least = least_capacity(program, settings)
    expandable = least_capacity(program, replace(settings, expandable_segments=True))
    capacity, total = int((usable_gib - overhead) * GIB), int(usable_gib * GIB)
    limited = replay(program, capacity, settings, total=total, timeline=True)
    fits = least.nbytes <= capacity and limited.failed_at is None
    # A program that runs at this capacity but fails at a larger one does not count as fitting and has no failure.
    failed = None if limited.failed_at is None else program.place(limited.failed_at)
    steps = _steps(program)
    first_step = next((start for name, start in steps if name != LOADING), len(program.events))
    verdict = Verdict(
        peak_memory_gib=free.allocated / GIB,
        peak_loading_gib=int(max(free.timeline[:first_step, 0], default=0)) / GIB,
        peak_reserved_gib=free.reserved / GIB,
        least_capacity_gib=least.nbytes / GIB,
        fragmentation_gib=(least.nbytes - free.allocated) / GIB,
        overhead_gib=overhead,
        needed_memory_gib=least.nbytes / GIB + overhead,
        usable_memory_gib=usable_gib,
        fits=int(fits),
        failure="" if failed is None else _failure(failed),
        fails_at=str(failed or ""),
        error=limited.error,
        expandable_segments_gib=expandable.nbytes / GIB + overhead,
        expandable_segments_help=not fits and expandable.nbytes <= capacity,
        touchy=bool(least.also_ran),
    )
    return verdict, _timeline(program, free, limited)


def _failure(place: Place) -> str:
    """Say when and where a program runs out of memory.

    >>> _failure(Place("loading", "sharded", "model.layers.3", "aten.cat.default"))
    'runs out of memory while loading: sharded, model.layers.3, aten.cat.default'
    """
    when, *where = place
    moment = "while loading" if when == LOADING else f"in {when}"
    return f"runs out of memory {moment}: {', '.join(filter(None, where))}"


def _steps(program: Program) -> tuple[tuple[str, int], ...]:
    """The name and the first event of loading and of each step."""
    steps: dict[str, int] = {}
    for index, event in enumerate(program.events):
        if event.nbytes:
            steps.setdefault(program.places[event.place].when, index)
    return tuple(steps.items())


def _timeline(program: Program, free: Replayed, limited: Replayed) -> Timeline:
    failed = None if limited.failed_at is None else (limited.failed_at, program.place(limited.failed_at))
    return Timeline(
        np.asarray(free.timeline[:, 0]),
        np.asarray(limited.timeline[:, 1]),
        np.asarray(free.timeline[:, 1]),
        _steps(program),
        failed,
    )
