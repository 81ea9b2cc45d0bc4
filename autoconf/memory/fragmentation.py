"""What a job needs of a GPU beyond allocated memory: PyTorch's fragmentation, and what is outside PyTorch.

How much fragmentation there is follows from the order and the sizes of a job's allocations, which
``autoconf.pipeline.replay`` replays. A replay takes too long for each question, so a version keeps curves over the
activations that were learned from replays and from real runs when it was made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from autoconf.jobs.stack import Stack
from autoconf.memory.units import Floats, Integers

EXPANDABLE = " with expandable segments"


def sharding_of(stack: Stack, *, several: bool) -> str:
    """The name by which fragmentation is kept: ``none`` on one GPU, else the sharding; and the allocator.

    ZeRO counts as ``fsdp1``: its allocations are not replayed.

    >>> sharding_of(Stack(sharding="fsdp2"), several=True), sharding_of(Stack(sharding="fsdp2"), several=False)
    ('fsdp2', 'none')
    >>> sharding_of(Stack(allocator="expandable_segments"), several=False)
    'none with expandable segments'
    """
    sharding = stack.sharding if several else "none"
    sharding = "fsdp1" if sharding.startswith("zero") else sharding
    return sharding + (EXPANDABLE if stack.allocator == "expandable_segments" else "")


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
        activations_gib: as in ``Curve``, the same for all curves.
        curves: GiB at each of them, by ``sharding_of`` a job.
    """

    activations_gib: tuple[float, ...]
    curves: dict[str, tuple[float, ...]]

    def curve(self, sharding: str) -> Curve:
        """The curve of a ``sharding_of``; without one for expandable segments, that of the default allocator."""
        return Curve(self.activations_gib, self.curves.get(sharding) or self.curves[sharding.removesuffix(EXPANDABLE)])


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
