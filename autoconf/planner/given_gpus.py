"""GPUs that a job describes by their memory, with or without the name of a type."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from autoconf.jobs.gpu_names import GpuNames, sold_with
from autoconf.jobs.job import GPU_MEMORY, UNNAMED
from autoconf.jobs.names import listed
from autoconf.planner import hardware
from autoconf.predictor.predictor import Predictor


class GivenGpu(NamedTuple):
    """A GPU of a job that gives its memory.

    Attributes:
        type: the type of the version's domain that decides what it can run; empty text if none does.
        problem: the reason why the version has no answer for it; empty text if it has one.
        note: a sentence about what the answer assumes.
    """

    type: str = ""
    problem: str = ""
    note: str = ""


class GivenGpus:
    """Describes the GPUs of one version that jobs give by their memory.

    >>> from autoconf.predictor import registry
    >>> print(GivenGpus(registry.load("3.0.0")).of("L40S", 96.0).problem)  # doctest: +ELLIPSIS
    gpu_memory_gib 96 is more than the 48 GB of L40S; ...
    >>> print(GivenGpus(registry.load("2.0.0")).of("unnamed", 24.0).problem)
    gpu_memory_gib is not in the domain of version 2.0.0; it is known from version 3.0.0
    """

    def __init__(self, predictor: Predictor) -> None:
        self._version, self._gpus = predictor.card.version, predictor.domain.gpus
        # The memory outside PyTorch is known for any GPU since version 3.0.0, and only for certain types before it.
        self._known = predictor.card.outside_pytorch is not None
        self._names = GpuNames(
            {name: gpu.usable_gib for name, gpu in self._gpus.items()},
            {name: gpu.aliases for name, gpu in self._gpus.items()},
        )
        self.of = lru_cache(maxsize=4096)(self._of)  # a table has few types

    def all_of(self, written: Sequence[str], memory: Sequence[Any]) -> dict[int, GivenGpu]:
        """The GPUs of jobs that give their memory, by position."""
        return {i: self.of(written[i], gib) for i, gib in enumerate(memory) if gib is not None}

    def _of(self, written: str, gib: float) -> GivenGpu:
        if not self._known:
            known = f"{GPU_MEMORY} is not in the domain of version {self._version}"
            return GivenGpu(problem=f"{known}; it is known from version 3.0.0")
        found = self._names.find(written)
        types = [found] if found else self._names.fitting(written)
        sold = [int(sold_with(self._gpus[name].usable_gib).removesuffix("gb")) for name in types]
        if types and gib > max(sold):
            more = f"{GPU_MEMORY} {gib:g} is more than the {max(sold)} GB of {listed(types, 'or')}"
            return GivenGpu(problem=f"{more}; give less, or gpu_model {UNNAMED} for another type")
        if found:
            usable = self._gpus[found].usable_gib
            note = f"{GPU_MEMORY} {gib:g} takes the place of the {usable:g} GiB of {found}" if gib != usable else ""
            return GivenGpu(found, note=note)
        if types and all(hardware.is_too_old(name, self._gpus[name]) for name in types):
            return GivenGpu(types[0])
        name = "a GPU without a name" if written == UNNAMED else f"gpu_model {written!r}"
        return GivenGpu(note=f"{name} is assumed to have {gib:g} GiB, bfloat16 and FlashAttention-2")


@lru_cache(maxsize=8)
def given_gpus(predictor: Predictor) -> GivenGpus:
    """The GPUs of a version that jobs give by their memory."""
    return GivenGpus(predictor)
