"""Jobs on candidate numbers of GPUs, as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from autoconf.memory.model import StackMemory
from autoconf.memory.units import GIB, Booleans, Floats, Integers
from autoconf.memory.version_1 import MemoryTable


@dataclass(frozen=True)
class Candidates:
    """Pairs of a job and a number of GPUs.

    Attributes:
        memory: the memory model of the version.
        rows: the row of each candidate's job in ``memory``; all arrays have shape (candidates,).
        gpus: numbers of GPUs, >= 1.
        tokens_per_gpu: tokens of one micro-batch on each GPU.
        usable_gib: memory of one GPU that CUDA reports as usable, in GiB.
        on_worker: GPUs of one worker; ``None`` if all GPUs are on one.
        host_limit_gib: memory of the host of one worker, in GiB, infinity for any; ``None`` if no job has a limit.
    """

    memory: MemoryTable | StackMemory
    rows: Integers
    gpus: Integers
    tokens_per_gpu: Floats
    usable_gib: Floats
    on_worker: Integers | None = None
    host_limit_gib: Floats | None = None

    def subset(self, keep: Booleans | Integers) -> Candidates:
        """Select candidates by a mask or by indices."""
        arrays: list[Any] = [self.rows, self.gpus, self.tokens_per_gpu, self.usable_gib, self.on_worker]
        picked: list[Any] = [None if array is None else array[keep] for array in (*arrays, self.host_limit_gib)]
        return Candidates(self.memory, *picked)

    def host_gib(self) -> Floats:
        """Memory that one worker's host must have for the job, in GiB, shape (candidates,)."""
        if not isinstance(self.memory, StackMemory):
            return np.zeros(len(self.rows))
        on_worker = self.gpus if self.on_worker is None else self.on_worker
        return self.memory.host_bytes(self.rows, self.gpus, on_worker, self.tokens_per_gpu) / GIB
