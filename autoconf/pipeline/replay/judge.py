"""Whether a recorded program runs on a GPU: the least capacity that it needs, and where it fails."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from autoconf.memory.allocator_settings import AllocatorSettings
from autoconf.memory.replay import Place, Program, Replayed, least_capacity, replay
from autoconf.memory.units import GIB, Integers

# What a process holds on a GPU that PyTorch's allocator does not know of, in GiB. On one GPU: of 68 runs on an A100 in
# fms-acceleration's benchmarks, the least that nvidia-smi read above torch.cuda.max_memory_allocated, in a run so near
# the GPU's limit that hardly any cache was left (Meta-Llama-3-8B, full, 4 samples of 4,096 tokens): CUDA's context and
# loaded kernels take no more than that. On several GPUs NCCL's buffers come on top: assumed, not measured.
OVERHEAD_GIB = {False: 0.92, True: 1.5}


def overhead_gib(gpus: int) -> float:
    """GiB of a GPU that are not PyTorch's, where nobody says otherwise.

    >>> overhead_gib(1), overhead_gib(4)
    (0.92, 1.5)
    """
    return OVERHEAD_GIB[gpus > 1]


@dataclass(frozen=True)
class Verdict:
    """What a replay says of a job on a GPU; memory in GiB.

    Attributes:
        peak_memory_gib: the most that is allocated.
        peak_reserved_gib: the most that is reserved where nothing limits it.
        least_capacity_gib: the least that PyTorch's allocator must be able to reserve.
        fragmentation_gib: of that, what is not allocated at the peak.
        overhead_gib: what is not PyTorch's.
        needed_memory_gib: least capacity and overhead.
        usable_memory_gib: of the GPU.
        fits: 1 if that is enough, else 0.
        fails_at: step, part of the model, module and op that find no room on this GPU; empty if it fits.
        error: PyTorch's message there.
        expandable_segments_gib: what is needed with expandable_segments:True.
        expandable_segments_help: whether the job fits with them and not as it is.
        touchy: whether it would run at some lower capacity, too, though it fails in between.
    """

    peak_memory_gib: float
    peak_reserved_gib: float
    least_capacity_gib: float
    fragmentation_gib: float
    overhead_gib: float
    needed_memory_gib: float
    usable_memory_gib: float
    fits: int
    fails_at: str
    error: str
    expandable_segments_gib: float
    expandable_segments_help: bool
    touchy: bool


@dataclass(frozen=True)
class Timeline:
    """Memory over the events of a program; arrays have shape (events,), in bytes.

    Attributes:
        allocated: without a limit.
        reserved: on the GPU, up to the event that failed.
        free_reserved: without a limit.
        steps: name and first event of loading and of each step.
        failed_at: event and place that found no room.
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
        program: what a job allocates.
        usable_gib: of the GPU, as CUDA reports it.
        overhead: GiB of it that are not PyTorch's.
        settings: of PyTorch's allocator.
    """
    settings = settings or AllocatorSettings()
    free = replay(program, settings=settings, timeline=True)
    least = least_capacity(program, settings)
    expandable = least_capacity(program, replace(settings, expandable_segments=True))
    capacity, total = int((usable_gib - overhead) * GIB), int(usable_gib * GIB)
    limited = replay(program, capacity, settings, total=total, timeline=True)
    fits = least.nbytes <= capacity and limited.failed_at is None
    # A program that runs at this very capacity and fails at a higher one is not said to fit, and fails nowhere here.
    failed = None if limited.failed_at is None else program.place(limited.failed_at)
    verdict = Verdict(
        peak_memory_gib=free.allocated / GIB,
        peak_reserved_gib=free.reserved / GIB,
        least_capacity_gib=least.nbytes / GIB,
        fragmentation_gib=(least.nbytes - free.allocated) / GIB,
        overhead_gib=overhead,
        needed_memory_gib=least.nbytes / GIB + overhead,
        usable_memory_gib=usable_gib,
        fits=int(fits),
        fails_at=str(failed or ""),
        error=limited.error,
        expandable_segments_gib=expandable.nbytes / GIB + overhead,
        expandable_segments_help=not fits and expandable.nbytes <= capacity,
        touchy=bool(least.also_ran),
    )
    return verdict, _timeline(program, free, limited)


def _timeline(program: Program, free: Replayed, limited: Replayed) -> Timeline:
    steps: dict[str, int] = {}
    for index, event in enumerate(program.events):
        if event.nbytes:
            steps.setdefault(program.places[event.place].when, index)
    failed = None if limited.failed_at is None else (limited.failed_at, program.place(limited.failed_at))
    return Timeline(
        np.asarray(free.timeline[:, 0]),
        np.asarray(limited.timeline[:, 1]),
        np.asarray(free.timeline[:, 1]),
        tuple(steps.items()),
        failed,
    )
