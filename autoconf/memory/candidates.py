"""Jobs on candidate numbers of GPUs, as arrays."""

from __future__ import annotations

from dataclasses import dataclass

from autoconf.memory.model import StackMemory
from autoconf.memory.units import Booleans, Floats, Integers
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
    """

    memory: MemoryTable | StackMemory
    rows: Integers
    gpus: Integers
    tokens_per_gpu: Floats
    usable_gib: Floats

    def subset(self, keep: Booleans | Integers) -> Candidates:
        """Select candidates by a mask or by indices."""
        return Candidates(
            self.memory, self.rows[keep], self.gpus[keep], self.tokens_per_gpu[keep], self.usable_gib[keep]
        )
