"""What candidates of several jobs need, and how many tokens fit, for all candidates of a table at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from autoconf.memory.fragmentation import Surface, inverse
from autoconf.memory.reserve import Reserve
from autoconf.memory.units import GIB, Floats, Integers

_AT_ONCE = 200_000  # pairs of a candidate and a moment: bounds the memory that they take

# Functions of the number of GPUs, each nonincreasing: from numbers of GPUs to values, shape (curves, candidates).
Curves = Callable[[Integers], Floats]


def sharing(gpus: Integers, per_node: int | Integers) -> Integers:
    """How many GPUs share what is divided among GPUs.

    Args:
        gpus: numbers of GPUs, >= 1, which their nodes have evenly.
        per_node: the most GPUs of a node, if those of a node share; 0 if all do.

    >>> sharing(np.array([4, 8, 12, 16]), per_node=8).tolist()
    [4, 8, 6, 8]
    """
    nodes = np.where(per_node, -(-gpus // np.maximum(per_node, 1)), 1)
    return np.asarray(gpus // nodes)


@dataclass(frozen=True)
class Resident:
    """Bytes that training holds at least: weights, and states, which are gradients and optimizer states.

    States are first allocated after activations, and lie between the segments of these.

    Attributes:
        whole: on every GPU.
        sharded: divided among GPUs.
        states: the states among ``whole``.
        states_sharded: the states among ``sharded``.
    """

    whole: float
    sharded: float
    states: float = 0.0
    states_sharded: float = 0.0


class Memory(Protocol):
    """What is needed of a ``GpuMemory``; ``total`` are bytes of its moments by variable, shape (moments, variables)."""

    total: Floats
    curves: Curves | None
    per_node: int
    resident: Resident
    fragmentation: Surface | None


def needed_bytes(
    memories: Sequence[Memory], of: Integers, gpus: Integers, tokens: Floats | Integers, reserve: Reserve
) -> Floats:
    """``GpuMemory.needed_bytes`` of candidates of several memories, shape (candidates,).

    Args:
        memories: the memories, all with fragmentation or all without.
        of: the memory of each candidate, by position; all arrays have shape (candidates,).
        gpus: numbers of GPUs, >= 1.
        tokens: tokens of a micro-batch on each GPU.
        reserve: the safety margin.
    """
    found = np.empty(len(of))
    for some in _parts(memories, of):
        candidates = _Candidates(memories, of[some], gpus[some])
        found[some] = candidates.needed_bytes(np.asarray(tokens[some], float), reserve)
    return found


def most_tokens(memories: Sequence[Memory], of: Integers, gpus: Integers, bytes_: Floats, reserve: Reserve) -> Floats:
    """``GpuMemory.most_tokens`` of candidates of several memories, shape (limits, candidates).

    Args:
        memories: this and others as in ``needed_bytes``.
        of: the memory of each candidate.
        gpus: numbers of GPUs.
        bytes_: limits of each candidate, shape (limits, candidates).
        reserve: the safety margin.
    """
    found = np.empty(bytes_.shape)
    for some in _parts(memories, of):
        found[:, some] = _Candidates(memories, of[some], gpus[some]).most_tokens(bytes_[:, some], reserve)
    return found


def _parts(memories: Sequence[Memory], of: Integers) -> list[Integers]:
    """Candidates, so many at a time that they have ``_AT_ONCE`` pairs or so."""
    if not len(of):
        return []
    ends = np.cumsum(np.array([len(memory.total) for memory in memories])[of])
    return np.split(np.arange(len(of)), np.flatnonzero(np.diff(ends // _AT_ONCE)) + 1)


class _Candidates:
    """Candidates and their moments; arguments as in ``needed_bytes``. A pair is a candidate and one of its moments."""

    def __init__(self, memories: Sequence[Memory], of: Integers, gpus: Integers) -> None:
        used, self.of = np.unique(of, return_inverse=True)
        self.memories = [memories[index] for index in used.tolist()]
        self.gpus = gpus
        self.sharers = sharing(gpus, np.array([memory.per_node for memory in self.memories])[self.of])
        residents = [(memory.resident.states, memory.resident.states_sharded) for memory in self.memories]
        whole, sharded = np.array(residents, float)[self.of].T
        self.states_gib = (whole + sharded / self.sharers) / GIB
        moments = np.array([len(memory.total) for memory in self.memories])
        before = np.cumsum(moments) - moments
        terms = np.zeros((moments.sum(), max(memory.total.shape[1] for memory in self.memories)))
        for memory, start in zip(self.memories, before.tolist(), strict=True):
            terms[start : start + len(memory.total), : memory.total.shape[1]] = memory.total
        pairs = moments[self.of]
        self.first = np.cumsum(pairs) - pairs  # pair of each candidate
        self.candidates = np.repeat(np.arange(len(pairs)), pairs)  # of each pair, as the terms
        self.terms = terms[np.arange(pairs.sum()) + np.repeat(before[self.of] - self.first, pairs)]

    def needed_bytes(self, tokens: Floats, reserve: Reserve) -> Floats:
        """Shape (candidates,)."""
        activations = self.terms[:, 1] * tokens[self.candidates] / GIB
        margin = reserve.gib(self._decides_margin(activations, self.candidates), self.gpus[self.candidates])
        needed = (1 + reserve.peak_share) * self._peaks(tokens) + GIB * margin
        return np.asarray(np.maximum.reduceat(needed, self.first))

    def most_tokens(self, bytes_: Floats, reserve: Reserve) -> Floats:
        """Shape (limits, candidates)."""
        activations = self._kinks(reserve)
        margin = reserve.gib(self._decides_margin(activations, np.arange(len(self.of))), self.gpus)
        needed = GIB * ((1 + reserve.peak_share) * activations + margin)  # at each of these activations
        # Of each limit and pair, for activations and their margin.
        room = bytes_[:, self.candidates] - (1 + reserve.peak_share) * self._peaks(np.zeros(len(self.of)))
        beyond = np.maximum(room - needed[-1, self.candidates], 0) / (1 + reserve.peak_share)
        found = GIB * inverse(room, activations, needed, self.candidates) + beyond
        with np.errstate(divide="ignore", invalid="ignore"):
            tokens = np.where(room < needed[0, self.candidates], 0.0, found / self.terms[:, 1])
        return np.asarray(np.minimum.reduceat(np.where(np.isnan(tokens), np.inf, tokens), self.first, axis=1))

    def _peaks(self, tokens: Floats) -> Floats:
        """Bytes of each pair without a margin."""
        variables = np.zeros((len(self.of), self.terms.shape[1]))
        variables[:, 0], variables[:, 1], variables[:, 2] = 1.0, tokens, 1 / self.sharers
        for index, memory in enumerate(self.memories):
            if memory.curves is not None:
                its = np.flatnonzero(self.of == index)
                variables[its, 3 : memory.total.shape[1]] = memory.curves(self.gpus[its]).T
        return np.asarray(np.einsum("ij,ij->i", self.terms, variables[self.candidates]))

    def _decides_margin(self, activations_gib: Floats, candidates: Integers) -> Floats:
        """What the margin depends on, in GiB, given activations whose last axis is of these candidates."""
        found = activations_gib
        for surface, its in self._surfaces(candidates):
            found = found.copy() if found is activations_gib else found
            found[..., its] = surface.at(activations_gib[..., its], self.states_gib[candidates[its]])
        return found

    def _kinks(self, reserve: Reserve) -> Floats:
        """Activations between which the margin of each candidate is linear, ascending; shape (kinks, candidates)."""
        margins = np.repeat(np.array(reserve.activations_gib)[:, None], len(self.of), axis=1)
        found = []
        for surface, its in self._surfaces(np.arange(len(self.of))):
            activations = np.repeat(surface.activations_gib[:, None], len(its), axis=1)
            curves = surface.curves(self.states_gib[its])
            kinks = np.concatenate([activations, inverse(margins[:, its], activations, curves)])
            found.append((its, np.sort(kinks, axis=0)))
        if not found:
            return margins
        together = np.empty((len(found[0][1]), len(self.of)))
        for its, kinks in found:
            together[:, its] = kinks
        return together

    def _surfaces(self, candidates: Integers) -> list[tuple[Surface, Integers]]:
        """The surfaces of fragmentation, if memories have any, and which of these candidates have each of them."""
        if self.memories[0].fragmentation is None:
            return []
        surfaces = [memory.fragmentation for memory in self.memories]
        distinct = {id(surface): surface for surface in surfaces if surface is not None}.values()
        return [
            (surface, np.flatnonzero(np.array([one is surface for one in surfaces])[self.of[candidates]]))
            for surface in distinct
        ]
