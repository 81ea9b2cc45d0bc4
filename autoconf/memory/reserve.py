"""The safety margin: memory of a GPU that must stay free on top of the traced peak."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoconf.memory.units import Floats, Integers


@dataclass(frozen=True)
class Reserve:
    """GiB of a GPU that must stay free, as a function of the activations and of whether the job has several GPUs.

    The margin is learned from real runs when a version is made. It grows with the activations, faster on several GPUs
    than on one; in versions that have learned fragmentation, it grows with that instead. For a cluster whose measured
    peaks exceed the traced ones, a share of the peak is added.

    Attributes:
        activations_gib: grid of activations, or of fragmentation, in GiB, ascending from 0 to more than any GPU can
            hold.
        one_gpu_gib: margin on one GPU at each grid point, in GiB; linear in between.
        several_gpus_gib: margin on each of several GPUs, in GiB.
        peak_share: share of the bytes of every moment, >= 0.

    >>> reserve = Reserve(activations_gib=(0, 100), one_gpu_gib=(3, 8), several_gpus_gib=(3, 27))
    >>> reserve.gib(np.array([0, 50, 50]), gpus=np.array([1, 1, 2])).tolist()
    [3.0, 5.5, 15.0]
    """

    activations_gib: tuple[float, ...]
    one_gpu_gib: tuple[float, ...]
    several_gpus_gib: tuple[float, ...]
    peak_share: float = 0.0

    def gib(self, activations_gib: Floats, gpus: Integers) -> Floats:
        """The margin of each candidate in GiB, without ``peak_share``.

        Args:
            activations_gib: activations, or fragmentation; shape (candidates,) or (moments, candidates).
            gpus: shape (candidates,).
        """
        several = np.asarray(gpus) > 1
        if several.all() or not several.any():  # almost always, and half the work
            margins = self.several_gpus_gib if several.any() else self.one_gpu_gib
            return np.asarray(np.interp(activations_gib, self.activations_gib, margins))
        one, more = (
            np.interp(activations_gib, self.activations_gib, margins)
            for margins in (self.one_gpu_gib, self.several_gpus_gib)
        )
        return np.where(several, more, one)
