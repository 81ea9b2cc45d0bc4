"""What a job needs of a GPU beyond allocated memory: PyTorch's fragmentation, and what is outside PyTorch.

How much fragmentation there is follows from the order and the sizes of a job's allocations, which
``autoconf.pipeline.replay`` replays. A replay takes too long for each question, so a version keeps
surfaces over activations and states that were learned from replays and from real runs when it was made.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from autoconf.jobs.stack import Allocator, Stack
from autoconf.memory.units import Floats, Integers

EXPANDABLE = " with expandable segments"


OF_4_BIT = " of 4-bit weights"


def kind_of(stack: Stack, method: str, *, several: bool) -> str:
    """The kind of a job by which fragmentation is kept: ``none`` on one GPU, else the sharding; and the allocator.

    FSDP of 4-bit weights is a kind of its own: each GPU first loads all weights, and shards then lie in what these
    leave behind. ZeRO counts as ``fsdp1``: its allocations are not replayed.

    >>> kind_of(Stack(sharding="fsdp2"), "full", several=True), kind_of(Stack(sharding="fsdp2"), "full", several=False)
    ('fsdp2', 'none')
    >>> kind_of(Stack(sharding="zero3"), "qlora", several=True)
    'fsdp1 of 4-bit weights'
    >>> kind_of(Stack(allocator="expandable_segments"), "lora", several=False)
    'none with expandable segments'
    """
    return kind_named(stack.sharding if several else "none", method, stack.allocator)


def kind_named(sharding: str, method: str, allocator: Allocator = "default") -> str:
    """The ``kind_of`` a job; ``sharding`` is ``none`` on one GPU."""
    sharding = "fsdp1" if sharding.startswith("zero") else sharding
    of = OF_4_BIT if method == "qlora" and sharding.startswith("fsdp") else ""
    return sharding + of + (EXPANDABLE if allocator == "expandable_segments" else "")


class Surface(NamedTuple):
    """Fragmentation of a kind of jobs by activations and states.

    Attributes:
        activations_gib: activations in GiB, ascending from 0 to more than any GPU has.
        states_gib: gradients and optimizer states in GiB, ascending from 0; more than the last counts as the last.
        gib: fragmentation in GiB, shape (states, activations), never falling along either; linear in between.

    >>> surface = Surface(*map(np.array, ([0.0, 100.0], [0.0, 10.0], [[1.0, 21.0], [3.0, 23.0]])))
    >>> surface.at(np.array([[0.0, 50.0]]), states_gib=np.array([0.0, 5.0])).tolist()
    [[1.0, 12.0]]
    """

    activations_gib: Floats
    states_gib: Floats
    gib: Floats

    def curves(self, states_gib: Floats) -> Floats:
        """Fragmentation at each of ``activations_gib`` and each candidate's states, shape (activations, candidates)."""
        weight, low, high = _places(states_gib, self.states_gib)
        return np.asarray(self.gib[low].T * (1 - weight) + self.gib[high].T * weight)

    def at(self, activations_gib: Floats, states_gib: Floats) -> Floats:
        """Fragmentation of candidates.

        Args:
            activations_gib: shape (candidates,) or (moments, candidates).
            states_gib: shape (candidates,).
        """
        of_states, low_states, high_states = _places(states_gib, self.states_gib)
        of_activations, low, high = _places(activations_gib, self.activations_gib)
        at_low, at_high = (
            self.gib[low_states, on] * (1 - of_states) + self.gib[high_states, on] * of_states for on in (low, high)
        )
        return np.asarray(at_low * (1 - of_activations) + at_high * of_activations)


def _places(values: Floats, grid: Floats) -> tuple[Floats, Integers, Integers]:
    """For values between points of a grid: how near the upper one is, from 0 to 1, and the points."""
    place = np.interp(values, grid, np.arange(len(grid)))
    low = place.astype(int)
    return place - low, low, np.minimum(low + 1, len(grid) - 1)


def inverse(y: Floats, xs: Floats, ys: Floats, columns: Integers | None = None) -> Floats:
    """Where the function of each column, linear between its points, reaches a value; within ``xs``.

    Args:
        y: shape (rows, columns).
        xs: never falling along each column, shape (points, columns).
        ys: rising along each column, likewise.
        columns: the column of ``xs`` and ``ys`` of each column of ``y``; by default the same one.

    >>> points = np.array([[0.0, 0.0], [2.0, 2.0]])
    >>> inverse(np.array([[5.0, 99.0]]), points, np.array([[0.0, 0.0], [10.0, 20.0]])).tolist()
    [[1.0, 2.0]]
    """
    columns = np.arange(y.shape[1]) if columns is None else columns
    low = np.zeros(y.shape, np.int64)
    for step in 2 ** np.arange(len(ys).bit_length() - 1, -1, -1):  # the last of all points but one that is not above
        higher = np.minimum(low + step, len(ys) - 2)
        low = np.where(ys[higher, columns] <= y, higher, low)
    start, rise = ys[low, columns], ys[low + 1, columns] - ys[low, columns]
    weight = np.clip((y - start) / np.where(rise > 0, rise, 1), 0, 1)
    return np.asarray(xs[low, columns] * (1 - weight) + xs[low + 1, columns] * weight)


@dataclass(frozen=True)
class Fragmentation:
    """The learned surfaces of a version.

    Attributes:
        activations_gib: as in ``Surface``, the same for all surfaces.
        states_gib: likewise.
        surfaces: GiB, shape (states, activations), by ``kind_of`` a job.
    """

    activations_gib: tuple[float, ...]
    states_gib: tuple[float, ...]
    surfaces: dict[str, tuple[tuple[float, ...], ...]]

    @cached_property
    def _arrays(self) -> dict[str, Surface]:
        axes = np.array(self.activations_gib), np.array(self.states_gib)
        return {kind: Surface(*axes, np.array(gib)) for kind, gib in self.surfaces.items()}

    def surface(self, kind: str) -> Surface:
        """The surface of a ``kind_of``; without one for expandable segments, that of the default allocator."""
        return self._arrays.get(kind) or self._arrays[kind.removesuffix(EXPANDABLE)]


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
