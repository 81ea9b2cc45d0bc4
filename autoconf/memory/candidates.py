"""Jobs on candidate numbers of GPUs, as arrays."""

from __future__ import annotations

from dataclasses import dataclass

from autoconf.memory.model import StackMemory
from autoconf.memory.units import Booleans, Floats, Integers
from autoconf.memory.version_1 import MemoryTable


@dataclass(frozen=True)
class Candidates:
    """Jobs on numbers of GPUs; all arrays have shape (candidates,)."""

    memory: MemoryTable | StackMemory
    rows: Integers  # each candidate's figures in ``memory``
    gpus: Integers
    tokens_per_gpu: Floats  # of one micro-batch
    usable_gib: Floats

    def subset(self, keep: Booleans | Integers) -> Candidates:
        return Candidates(
            self.memory, self.rows[keep], self.gpus[keep], self.tokens_per_gpu[keep], self.usable_gib[keep]
        )
