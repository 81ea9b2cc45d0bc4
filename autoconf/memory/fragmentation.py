"""Fragmentation: what PyTorch's allocator needs beyond allocated memory, learned from replays when a version is made.

How much it is follows from the order and the sizes of a job's allocations, which ``autoconf.pipeline.replay`` replays.
A replay takes too long for each question, so a predictor learned it from many, by the kind of a job and its
activations. A version keeps the learned curves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from autoconf.jobs.stack import Stack
from autoconf.memory.units import Floats, Integers


class JobKind(NamedTuple):
    """What fragmentation is learned by, apart from the activations.

    Attributes:
        method: ``full``, ``lora`` or ``qlora``.
        sharding: how several GPUs share the job, or ``none`` on one GPU; ZeRO counts as ``fsdp2``, whose units are
            gathered and freed alike.

    >>> str(JobKind("full", "fsdp1"))
    'full fsdp1'
    """

    method: str
    sharding: str

    def __str__(self) -> str:
        return " ".join(self)


def job_kind(method: str, stack: Stack, *, several: bool) -> JobKind:
    """The kind of a job on one GPU, or on several."""
    sharding = stack.sharding if several else "none"
    return JobKind(method, "fsdp2" if sharding.startswith("zero") else sharding)


class Curve(NamedTuple):
    """Fragmentation by activations.

    Attributes:
        activations_gib: activations in GiB, ascending from 0 to more than any GPU has.
        gib: fragmentation in GiB at each of them, never falling; linear in between.

    >>> Curve((0.0, 100.0), (1.0, 21.0)).at(np.array([0.0, 50.0])).tolist()
    [1.0, 11.0]
    """

    activations_gib: tuple[float, ...]
    gib: tuple[float, ...]

    def at(self, activations_gib: Floats) -> Floats:
        return np.asarray(np.interp(activations_gib, self.activations_gib, self.gib))


@dataclass(frozen=True)
class Fragmentation:
    """The learned curves of a version.

    Attributes:
        activations_gib: as in ``Curve``, the same for all kinds.
        curves: GiB at each of them, by the text of a ``JobKind``.
    """

    activations_gib: tuple[float, ...]
    curves: dict[str, tuple[float, ...]]

    def curve(self, kind: JobKind) -> Curve:
        return Curve(self.activations_gib, self.curves[str(kind)])


@dataclass(frozen=True)
class OutsidePyTorch:
    """GPU memory that PyTorch's allocator does not hold: the CUDA context, loaded kernels, NCCL's buffers.

    Attributes:
        usable_gib: where each class of GPUs begins, by the memory that CUDA reports, ascending from 0.
        one_gpu_gib: GiB of a process on one GPU, for each class.
        several_gpus_gib: likewise on each of several GPUs.

    >>> outside = OutsidePyTorch((0.0, 79.0), (0.3, 0.7), (1.0, 2.3))
    >>> outside.left_gib(np.array([44.5, 79.25, 79.25]), np.array([1, 1, 4])).round(2).tolist()
    [44.2, 78.55, 76.95]
    """

    usable_gib: tuple[float, ...]
    one_gpu_gib: tuple[float, ...]
    several_gpus_gib: tuple[float, ...]

    def left_gib(self, usable_gib: Floats, gpus: Integers) -> Floats:
        """The GiB that are left for the allocator, which never fall with a GPU's memory; shape (candidates,)."""
        place = np.searchsorted(self.usable_gib, usable_gib, side="right") - 1
        outside = np.array([self.one_gpu_gib, self.several_gpus_gib])
        starts = np.array(self.usable_gib) - outside  # what is left where a class begins
        beyond = np.minimum.accumulate(starts[:, :0:-1], axis=1)[:, ::-1]  # in any larger class
        most = np.concatenate([beyond, np.full((2, 1), np.inf)], axis=1)
        several = (np.asarray(gpus) > 1).astype(int)
        return np.asarray(np.minimum(usable_gib - outside[several, place], most[several, place]))
