"""Peak memory per GPU of a fine-tuning job, in closed form over traced figures.

The figures come from traces of the real training code; what stands here is only how FSDP divides them over GPUs. All
arithmetic is in bytes, element-wise over numpy arrays: one job is an array of length one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoconf.memory.units import Floats, Integers


@dataclass(frozen=True)
class Reserve:
    """GiB of a GPU that must stay free beside the peak: they grow with activations, on several GPUs faster than on one.

    Where a cluster was seen to hold more than traces say, a share of the peak must stay free on top of them.

    >>> reserve = Reserve(activations_gib=(0, 100), one_gpu_gib=(3, 8), several_gpus_gib=(3, 27))
    >>> reserve.gib(np.array([0, 50, 50]), gpus=np.array([1, 1, 2])).tolist()
    [3.0, 5.5, 15.0]
    """

    activations_gib: tuple[float, ...]  # rising, from 0 to what no GPU can hold
    one_gpu_gib: tuple[float, ...]  # the reserve at each of them; linear in between
    several_gpus_gib: tuple[float, ...]
    peak_share: float = 0.0  # of every moment's bytes, >= 0

    def gib(self, activations_gib: Floats, gpus: Integers) -> Floats:
        """The reserve of each job, shape (jobs,)."""
        one, several = (
            np.interp(activations_gib, self.activations_gib, of) for of in (self.one_gpu_gib, self.several_gpus_gib)
        )
        return np.where(np.asarray(gpus) > 1, several, one)
