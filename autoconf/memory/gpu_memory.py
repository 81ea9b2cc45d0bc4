"""Peak memory of one GPU in a training step: the largest of several moments, linear in tokens and in 1 / GPUs.

DeepSpeed's ZeRO also has parts that depend on the number of GPUs in other ways; these are ``Curves``.

All arithmetic is in bytes and element-wise over numpy arrays; one candidate is an array of length one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Self

import numpy as np

from autoconf.memory.envelope import undominated
from autoconf.memory.fragmentation import Surface
from autoconf.memory.needs import Curves, Resident, most_tokens, needed_bytes, sharing
from autoconf.memory.reserve import Reserve
from autoconf.memory.units import GIB, Floats, Integers


@dataclass(frozen=True)
class Moments:
    """Bytes of each part at several moments: whole on every GPU, or divided among the GPUs (``sharded``).

    Attributes:
        activations: shape (moments, 2): constant bytes, and bytes per token of a GPU.
        weights: this and every following part is an array of shape (moments,), or one number for all moments.
        gradients: gradients, and buffers of their reduction.
        optimizer: states, and temporaries of the optimizer's step.
        gathered: parameters of other GPUs that this GPU holds temporarily.
        gradients_curves: gradients per unit of each curve of ``GpuMemory``, shape (curves,) or (moments, curves).
        optimizer_curves: likewise of the optimizer.
    """

    activations: Floats
    weights: float | Floats = 0.0
    weights_sharded: float | Floats = 0.0
    gradients: float | Floats = 0.0
    gradients_sharded: float | Floats = 0.0
    optimizer: float | Floats = 0.0
    optimizer_sharded: float | Floats = 0.0
    gathered: float | Floats = 0.0
    gathered_sharded: float | Floats = 0.0
    gradients_curves: Floats | None = None
    optimizer_curves: Floats | None = None

    def terms(self) -> Floats:
        """Coefficients of the variables, shape (parts, moments, 3 + curves), in the order of ``GpuMemory.PARTS``."""
        parts = (
            (self.weights, self.weights_sharded),
            (self.gradients, self.gradients_sharded),
            (self.optimizer, self.optimizer_sharded),
            (self.gathered, self.gathered_sharded),
        )
        curves = {1: self.gradients_curves, 2: self.optimizer_curves}
        count = max(0 if given is None else given.shape[-1] for given in curves.values())
        terms = np.zeros((len(GpuMemory.PARTS), len(self.activations), 3 + count))
        for index, given in curves.items():
            if given is not None:
                terms[index, :, 3:] = given
        for index, (whole, sharded) in enumerate(parts):
            terms[index, :, 0], terms[index, :, 2] = whole, sharded
        terms[-1, :, :2] = self.activations
        return terms


class GpuMemory:
    """Memory of one GPU of a job, for any number of GPUs and tokens.

    Args:
        moments: moments of a training step; the largest is the peak.
        resident: the minimum that training holds.
        unsharded_gradients: bytes of gradients that FSDP keeps whole on every GPU under gradient accumulation.
        curves: functions of the number of GPUs that the moments refer to.
        per_node: GPUs of a node, if these alone share what is divided among GPUs; 0 for all GPUs.

    >>> moments = Moments(activations=np.array([[7.0, 30.0]]), weights_sharded=2100.0)
    >>> memory = GpuMemory([moments], Resident(whole=0, sharded=2100))
    >>> memory.peak_bytes(gpus=np.array([1, 2]), tokens=np.array([10, 5])).tolist()
    [2407.0, 1207.0]
    """

    PARTS = ("weights", "gradients", "optimizer", "gathered", "activations")

    def __init__(
        self,
        moments: Sequence[Moments],
        resident: Resident,
        unsharded_gradients: float = 0.0,
        curves: Curves | None = None,
        per_node: int = 0,
    ) -> None:
        self.resident, self.unsharded_gradients, self.per_node = resident, unsharded_gradients, per_node
        self.curves = curves
        parts = np.concatenate([some.terms() for some in moments], axis=1)
        total = parts.sum(axis=0)
        kept = undominated(total, decimals=0)
        self._parts = parts[:, kept]  # shape (parts, moments, variables)
        self.total = total[kept]  # shape (moments, variables)
        self.fragmentation: Surface | None = None

    def fragmented(self, surface: Surface | None) -> Self:
        """The same memory, whose margin depends on fragmentation instead of activations.

        Args:
            surface: fragmentation by activations and states; ``None`` changes nothing.
        """
        found = copy(self)
        found.fragmentation = surface
        return found

    def peak_bytes(self, gpus: Integers, tokens: Floats | Integers) -> Floats:
        """Peak bytes without the safety margin, shape (candidates,).

        Args:
            gpus: numbers of GPUs, >= 1; all arrays have shape (candidates,).
            tokens: tokens of a micro-batch on each GPU.
        """
        return np.asarray((self.total @ self._variables(gpus, tokens)).max(axis=0))

    def needed_bytes(self, gpus: Integers, tokens: Floats | Integers, reserve: Reserve) -> Floats:
        """Bytes of the largest moment with its safety margin, shape (candidates,); arguments as in ``peak_bytes``.

        The margin depends on the activations, so the deciding moment may differ from the peak. The result never falls
        with more tokens and never rises with more GPUs.
        """
        return needed_bytes([self], np.zeros(len(gpus), np.int64), gpus, tokens, reserve)

    def floors(self, gpus: Integers, tokens: Floats | Integers, kept: Floats) -> Floats:
        """Bytes that some of the parts take at least, without a margin.

        Args:
            gpus: numbers of GPUs, >= 1; arrays of candidates have shape (candidates,).
            tokens: tokens of a micro-batch on each GPU.
            kept: 1 for the parts that count, 0 for the others, shape (floors, parts), in the order of ``PARTS``.

        Returns:
            The largest of the moments, shape (floors, candidates).
        """
        some = np.tensordot(kept, self._parts, axes=1)
        return np.asarray((some @ self._variables(gpus, tokens)).max(axis=1))

    def most_tokens(self, gpus: Integers, bytes_: Floats, reserve: Reserve) -> Floats:
        """The tokens at which ``needed_bytes`` reaches limits, up to rounding errors.

        Args:
            gpus: numbers of GPUs, all 1 or all larger.
            bytes_: limits of each candidate, shape (limits, candidates).
            reserve: the safety margin.

        Returns:
            Tokens, shape (limits, candidates); 0 if none fit, or infinity if no number of tokens reaches the limit.
        """
        return most_tokens([self], np.zeros(len(gpus), np.int64), gpus, bytes_, reserve)

    def deciding_bytes(self, gpus: Integers, tokens: Floats | Integers, reserve: Reserve) -> Floats:
        """Bytes at the moment that decides ``needed_bytes``, and what the margin depends on.

        This is fragmentation, or in versions without it the part that grows with tokens. Both are without the margin;
        shape (candidates, 2).
        """
        at = self._needs(gpus, tokens, reserve).argmax(axis=0)
        bytes_ = (self.total[at] * self._variables(gpus, tokens).T).sum(axis=1)
        activations = (self.total[at, 1] * tokens / GIB)[None]
        return np.stack([bytes_, GIB * self._decides_margin(activations, gpus)[0]], axis=1)

    def parts(self, gpus: int, tokens: float, reserve: Reserve) -> dict[str, float]:
        """Bytes of each part, and of the margin, at the deciding moment; their sum is ``needed_bytes``.

        The margin is ``fragmentation``, 0 in versions without it, and ``reserve``.
        """
        one, those = np.array([gpus]), np.array([tokens], float)
        at = int(self._needs(one, those, reserve).argmax())
        variables = self._variables(one, those)[:, 0]
        found = {name: float(part[at] @ variables) for name, part in zip(self.PARTS, self._parts, strict=True)}
        activations = np.array([[self.total[at, 1] * tokens / GIB]])
        margin = float(reserve.gib(self._decides_margin(activations, one), one)[0, 0]) * GIB
        without = margin if self.fragmentation is None else float(reserve.gib(np.zeros(1), one)[0]) * GIB
        on_top = reserve.peak_share * float(self.total[at] @ variables)
        return {**found, "fragmentation": margin - without, "reserve": without + on_top}

    def _needs(self, gpus: Integers, tokens: Floats | Integers, reserve: Reserve) -> Floats:
        """Bytes of each moment with its margin, shape (moments, candidates)."""
        activations = np.outer(self.total[:, 1], tokens) / GIB
        peaks = self.total @ self._variables(gpus, tokens)
        decides = activations if self.fragmentation is None else self._decides_margin(activations, gpus)
        return np.asarray((1 + reserve.peak_share) * peaks + GIB * reserve.gib(decides, gpus))

    def _decides_margin(self, activations_gib: Floats, gpus: Integers) -> Floats:
        """What the margin depends on, in GiB: fragmentation, or in versions without it the activations."""
        if self.fragmentation is None:
            return activations_gib
        return self.fragmentation.at(activations_gib, self._states_gib(gpus))

    def _states_gib(self, gpus: Integers) -> Floats:
        """Gradients and optimizer states of each GPU, in GiB, shape (candidates,)."""
        return (self.resident.states + self.resident.states_sharded / sharing(gpus, self.per_node)) / GIB

    def _variables(self, gpus: Integers, tokens: Floats | Integers) -> Floats:
        """The factors of the terms of a moment, shape (3 + curves, candidates)."""
        sharers = sharing(gpus, self.per_node) if self.per_node else gpus
        linear = np.stack([np.ones(len(gpus)), tokens, 1 / sharers])
        return np.asarray(linear if self.curves is None else np.concatenate([linear, self.curves(gpus)]), np.float64)


@dataclass(frozen=True)
class Loads:
    """What each GPU holds while a model is loaded, where training may hold less.

    Attributes:
        what: what that is, in words.
        moments: bytes on each GPU at some moments, and bytes that the GPUs divide.
    """

    what: str = ""
    moments: tuple[tuple[float, float], ...] = ()


class GpuJob:
    """What a GPU of a job holds. Its memory is composed when it is first needed: jobs that rules exclude never need it.

    Args:
        resident: the minimum that training holds.
        unsharded_gradients: bytes of gradients that FSDP keeps whole on every GPU under gradient accumulation.
        compose: makes the memory of the GPU.
        loading: what the GPU holds while the model is loaded.
        host_bytes: bytes of a worker's host, by the number of GPUs, those of the worker, and tokens of each.
        per_node: as in ``GpuMemory``.
    """

    def __init__(
        self,
        resident: Resident,
        unsharded_gradients: float,
        compose: Callable[[], GpuMemory],
        loading: Loads = Loads(),
        host_bytes: Callable[[int, int, float], float] = lambda gpus, on_worker, tokens: 0.0,
        per_node: int = 0,
    ) -> None:
        self.resident, self.unsharded_gradients, self._compose = resident, unsharded_gradients, compose
        self.loading, self.per_node, self._host_bytes = loading, per_node, host_bytes
        self._memory: GpuMemory | None = None

    def fragmented(self, surface: Surface) -> GpuJob:
        """The same job, whose margin depends on fragmentation."""
        memory = self.unsharded_gradients, lambda: self.memory.fragmented(surface)
        return GpuJob(self.resident, *memory, self.loading, self._host_bytes, self.per_node)

    def host_bytes(self, gpus: int, on_worker: int, tokens: float = 0.0) -> float:
        """Bytes of a worker's host.

        Args:
            gpus: number of GPUs, >= 1.
            on_worker: those of the worker, >= 1.
            tokens: tokens of a micro-batch on each GPU, >= 0.
        """
        return self._host_bytes(int(sharing(np.array(gpus), self.per_node)), on_worker, tokens)

    @property
    def memory(self) -> GpuMemory:
        """The memory of the GPU."""
        if self._memory is None:
            self._memory = self._compose()
        return self._memory
