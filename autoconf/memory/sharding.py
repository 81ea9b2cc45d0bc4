"""What each GPU of a job holds, from what one GPU does without sharding: FSDP's gathering and reducing, in closed form.

FSDP gathers, frees and reduces units (a decoder layer each, and the root: embeddings, final norm and head) where one of
them begins or ends, and leaves what runs in between alone. So the bytes of a GPU at any moment are those of the same
moment on a single GPU, with the parameters and gradients exchanged for what FSDP has of them there. Which units that is
was read off traces of PyTorch's own wrappers, and is held against them (``make ground-truth``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from autoconf.memory.envelope import undominated
from autoconf.memory.optimizers import OptimizerBytes
from autoconf.memory.profile import Point, Units
from autoconf.memory.reserve import Reserve
from autoconf.memory.units import GIB, Floats, Integers

Way = Literal["none", "ddp", "fsdp1", "fsdp2"]


class _Gathered(NamedTuple):
    """Units that are whole at a point, in copies of the root's and of a layer's parameters.

    ``reduced`` and ``root_reduced`` count buffers as large as a layer's (the root's) gradients, ``cast`` copies of
    shards in the dtype of computation.
    """

    root: int = 0
    layer: int = 0
    reduced: int = 0
    root_reduced: int = 0
    root_cast: int = 0
    layer_cast: int = 0


# A point may have several phases, of which the largest counts. FSDP1: torch/distributed/fsdp/_runtime_utils.py and
# _flat_param.py; a layer's views lie in its flat parameter, and backward prefetch gathers the next unit before a
# layer's backward pass begins.
_FSDP1: dict[Point, tuple[_Gathered, ...]] = {
    Point.EMBEDDING: (_Gathered(root=1), _Gathered(root=1, root_cast=1)),
    Point.FIRST_GATHER: (_Gathered(root=1, layer=1, layer_cast=1),),
    Point.GATHER: (_Gathered(root=1, layer=1, layer_cast=1),),
    Point.FORWARD: (_Gathered(root=1, layer=1),),
    Point.HEAD: (_Gathered(root=1),),
    Point.HEAD_OVER: (_Gathered(root=1),),
    Point.TURN: (_Gathered(root=1, layer=1, layer_cast=1),),
    Point.LOSS: (_Gathered(root=1, layer=1),),
    Point.LAST_START: (_Gathered(root=1, layer=2, layer_cast=1),),
    Point.LAST: (_Gathered(root=1, layer=2),),
    Point.LAST_LATE: (_Gathered(root=1, layer=2),),
    Point.START: (_Gathered(root=1, layer=2, layer_cast=1),),
    Point.MIDDLE: (_Gathered(root=1, layer=2),),
    Point.MIDDLE_LATE: (_Gathered(root=1, layer=2),),
    Point.FIRST_START: (_Gathered(root=1, layer=1),),
    Point.FIRST: (_Gathered(root=1, layer=1),),
    Point.FIRST_LATE: (_Gathered(root=1, layer=1),),
    Point.END: (_Gathered(root=1, layer=2, reduced=1),),
    Point.FIRST_END: (_Gathered(root=1, layer=1, reduced=1),),
    Point.TAIL: (_Gathered(root=1),),
    Point.TAIL_END: (_Gathered(root=1, root_reduced=1),),
}
# Adapters are units of their own: the layer before is gathered when the first of them begins its backward pass.
_FSDP1_ADAPTERS = _FSDP1 | {
    Point.LAST_START: (_Gathered(root=1, layer=1),),
    Point.LAST: (_Gathered(root=1, layer=1),),
    Point.START: (_Gathered(root=1, layer=1),),
    Point.MIDDLE: (_Gathered(root=1, layer=1),),
}
# torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py and _fsdp_collectives.py: a unit is gathered into one buffer
# and copied out of it, and the buffer lives until the next unit is needed; the input of a reduction lives until the
# next one.
_FSDP2: dict[Point, tuple[_Gathered, ...]] = {
    Point.EMBEDDING: (_Gathered(root=2),),
    Point.FIRST_GATHER: (_Gathered(root=2, layer=2),),
    Point.GATHER: (_Gathered(root=1, layer=3),),
    Point.FORWARD: (_Gathered(root=1, layer=2),),
    Point.HEAD: (_Gathered(root=1, layer=1),),
    Point.HEAD_OVER: (_Gathered(root=1, layer=1),),
    Point.TURN: (_Gathered(root=2), _Gathered(root=1, layer=1, layer_cast=1)),
    Point.LOSS: (_Gathered(root=1, layer=1),),
    Point.LAST_START: (_Gathered(root=1, layer=2, layer_cast=1),),
    Point.LAST: (_Gathered(root=1, layer=2),),
    Point.LAST_LATE: (_Gathered(root=1, layer=2),),
    Point.START: (_Gathered(root=1, layer=2, reduced=1, layer_cast=1),),
    Point.MIDDLE: (_Gathered(root=1, layer=2, reduced=1),),
    Point.MIDDLE_LATE: (_Gathered(root=1, layer=2, reduced=1),),
    Point.FIRST_START: (_Gathered(root=1, layer=1, reduced=1),),
    Point.FIRST: (_Gathered(root=1, layer=1, reduced=1),),
    Point.FIRST_LATE: (_Gathered(root=1, layer=1, reduced=1),),
    Point.END: (_Gathered(root=1, layer=1, reduced=1),),
    Point.FIRST_END: (_Gathered(root=1, reduced=1),),
    Point.TAIL: (_Gathered(root=1, reduced=1),),
    Point.TAIL_END: (_Gathered(root_reduced=1),),
}


@dataclass(frozen=True)
class Bytes:
    """Bytes per parameter: of frozen and trainable ones as they are stored and as they compute."""

    frozen: int
    trainable: int
    frozen_computing: int
    trainable_computing: int


class Held:
    """What a GPU holds at each moment of a job, by part: affine in the tokens of a GPU and in 1 / GPUs."""

    PARTS = ("weights", "gradients", "optimizer", "gathered", "activations")

    def __init__(self, phases: Sequence[_Terms], resident: tuple[float, float], whole_gradients: float = 0.0) -> None:
        """
        Args:
            phases: moments.
            resident: weights, gradients and optimizer states, which no training can do without: bytes that every GPU
                holds, and bytes that are divided among them.
            whole_gradients: what FSDP keeps of the gradients on every GPU under accumulation.
        """
        self.resident, self.whole_gradients = resident, whole_gradients
        parts = np.concatenate([phase.parts() for phase in phases], axis=1)
        total = parts.sum(axis=0)
        kept = undominated(total, decimals=0)
        self._parts, self._total = parts[:, kept], total[kept]

    def peak_bytes(self, gpus: Integers, tokens: Floats | Integers) -> Floats:
        """Peak of each candidate; all arrays have shape (candidates,)."""
        return (self._total @ _variables(gpus, tokens)).max(axis=0)

    def needed_bytes(self, gpus: Integers, tokens: Floats | Integers, reserve: Reserve) -> Floats:
        """Peak of each candidate with what must stay free beside each moment.

        Activations need a reserve of their own, so that the moment which decides need not be that of the peak; and so
        that what is needed rises with tokens, and falls with more GPUs, as moments themselves do.
        """
        return self._needs(gpus, tokens, reserve).max(axis=0)

    def _needs(self, gpus: Integers, tokens: Floats | Integers, reserve: Reserve) -> Floats:
        """Shape (moments, candidates)."""
        activations = np.outer(self._total[:, 1], tokens) / GIB
        return (1 + reserve.peak_share) * (self._total @ _variables(gpus, tokens)) + GIB * reserve.gib(
            activations, gpus
        )

    def deciding_bytes(self, gpus: Integers, tokens: Floats | Integers, reserve: Reserve) -> Floats:
        """What candidates hold at the moment that decides, and of that what grows with the tokens; (candidates, 2)."""
        at = self._needs(gpus, tokens, reserve).argmax(axis=0)
        held = (self._total[at] * _variables(gpus, tokens).T).sum(axis=1)
        return np.stack([held, self._total[at, 1] * tokens], axis=1)

    def parts(self, gpus: int, tokens: float, reserve: Reserve) -> dict[str, float]:
        """The parts of what a candidate needs at the moment that decides, and the reserve, in bytes: they add up to
        ``needed_bytes``.
        """
        one, those = np.array([gpus]), np.array([tokens], float)
        at = int(self._needs(one, those, reserve).argmax())
        variables = _variables(one, those)[:, 0]
        found = {name: float(part[at] @ variables) for name, part in zip(self.PARTS, self._parts, strict=True)}
        activations = np.array([self._total[at, 1] * tokens / GIB])
        on_top = reserve.peak_share * float(self._total[at] @ variables)
        return {**found, "reserve": float(reserve.gib(activations, one)[0]) * GIB + on_top}


def _variables(gpus: Integers, tokens: Floats | Integers) -> Floats:
    return np.stack([np.ones(len(gpus)), tokens, 1 / gpus])


def held(
    moments: Floats, units: Units, bytes_: Bytes, way: Way, accumulating: bool, rank: int | None,
    optimizer: OptimizerBytes,
) -> Held:  # fmt: skip
    """Put together what a GPU holds.

    Args:
        moments: of a micro-batch on one GPU, with the columns of ``StackMoment``; for FSDP with the parameters in the
            dtype in which it gathers them.
        units: parameters.
        bytes_: per parameter.
        way: ``none`` for one GPU; what several do.
        accumulating: whether an optimizer step takes several micro-batches.
        rank: of adapters; ``None`` where all parameters train.
        optimizer: states and temporaries of the step, on all GPUs together.
    """
    points = [Point(int(p)) for p in moments[:, 0]]
    constant, per_token, constant_r, per_token_r, *gradients = moments[:, 1:].T
    r = rank or 1
    own, newborn, done, rest = (g * r for g in gradients)
    trainable = units.trainable * r
    whole = trainable * bytes_.trainable_computing
    stored = units.frozen * bytes_.frozen + trainable * bytes_.trainable + units.quantized / 2
    per_rank = r * (rank is not None)
    activations = np.stack(
        [constant + per_rank * constant_r, per_token + per_rank * per_token_r, np.zeros(len(moments))], axis=1
    )
    if way in ("none", "ddp"):
        # torch/csrc/distributed/c10d/reducer.cpp: DDP's buckets are a second copy of the gradients.
        buckets = whole if way == "ddp" else 0.0
        weights = stored + units.unsharded_bytes
        held_gradients = whole + newborn if accumulating else own + done + rest
        phase = _Terms(weights, 0, held_gradients + buckets, 0, optimizer.states, 0, 0, 0, activations)
        end = _Terms(weights, 0, whole + buckets, 0, optimizer.states + optimizer.step, 0, 0, 0, _NOTHING)
        return Held([phase, end], (weights + whole + buckets + optimizer.states, 0.0))
    schedule = _FSDP2 if way == "fsdp2" else _FSDP1 if rank is None else _FSDP1_ADAPTERS
    rows = [(index, phase) for index, point in enumerate(points) for phase in schedule[point]]
    at = np.array([index for index, _ in rows])
    roots, layers, reduced, root_reduced, root_casts, layer_casts = np.array([phase for _, phase in rows], float).T
    root = _unit(units.root_frozen, units.root_trainable * r, 0, bytes_)
    # What FSDP1 gathers for single adapters is too little to count.
    with_layer = 0 if way == "fsdp1" and rank is not None else 1
    layer = _unit(units.layer_frozen, units.layer_trainable * r, units.layer_quantized, bytes_, with_layer)
    own, newborn, done, rest = own[at], newborn[at], done[at], rest[at]
    buffers = reduced * layer.gradients + root_reduced * root.gradients
    ratio = bytes_.trainable / bytes_.trainable_computing
    common = {
        "weights": units.unsharded_bytes, "weights_sharded": stored,
        "optimizer": 0, "optimizer_sharded": optimizer.states,
        "gathered": roots * root.gathered + layers * layer.gathered,
        "gathered_sharded": root_casts * root.cast + layer_casts * layer.cast, "activations": activations[at],
    }  # fmt: skip
    if accumulating and way == "fsdp1":
        # New gradients are views into one flat gradient of the unit, which joins the accumulated one at its end.
        phases = [_Terms(**common, gradients=whole + own + rest + buffers, gradients_sharded=0)]
    elif accumulating:
        # The last micro-batch reduces the layers behind, those before it reduce nothing.
        phases = [
            _Terms(**common, gradients=whole + newborn, gradients_sharded=0),
            _Terms(**common, gradients=whole + newborn + buffers - done, gradients_sharded=done * ratio),
        ]
    else:
        phases = [_Terms(**common, gradients=own + rest + buffers, gradients_sharded=done * ratio)]
        if way == "fsdp2":
            # Once the root's gradients were read for reduction only the last one is still held; the result is there,
            # and where it is stored in another dtype, twice.
            tail = np.where(np.array([points[i] == Point.TAIL_END for i in at]), 1.0, 0.0)
            reduced_root = tail * root.gradients * (ratio + (ratio != 1))
            gradients = np.where(tail > 0, newborn + buffers, own + rest + buffers)
            phases.append(_Terms(**common, gradients=gradients, gradients_sharded=done * ratio + reduced_root))
    end = _Terms(units.unsharded_bytes, stored, 0, whole * ratio, 0, optimizer.states + optimizer.step, 0, 0, _NOTHING)
    resident = (units.unsharded_bytes, stored + min(1.0, ratio) * whole + optimizer.states)
    return Held([*phases, end], resident, whole if accumulating else 0.0)


_NOTHING = np.zeros((1, 3))


@dataclass(frozen=True)
class _Terms:
    """Bytes of each part at some moments: what every GPU holds, and what is divided among them."""

    weights: Any
    weights_sharded: Any
    gradients: Any
    gradients_sharded: Any
    optimizer: Any
    optimizer_sharded: Any
    gathered: Any
    gathered_sharded: Any
    activations: Floats  # moments x (constant, per token, sharded)

    def parts(self) -> Floats:
        """Shape (parts, moments, 3)."""
        moments = len(self.activations)
        pairs = [
            (self.weights, self.weights_sharded), (self.gradients, self.gradients_sharded),
            (self.optimizer, self.optimizer_sharded), (self.gathered, self.gathered_sharded),
        ]  # fmt: skip
        terms = np.zeros((len(pairs) + 1, moments, 3))
        for index, (constant, sharded) in enumerate(pairs):
            terms[index, :, 0], terms[index, :, 2] = constant, sharded
        terms[-1] = self.activations
        return terms


class _Unit(NamedTuple):
    gathered: float
    cast: float  # of the gathered bytes, those of parameters that are stored in another dtype
    gradients: float


def _unit(frozen: int, trainable: int, quantized: int, bytes_: Bytes, with_trainable: int = 1) -> _Unit:
    gradients = trainable * bytes_.trainable_computing
    parts = (frozen * bytes_.frozen_computing, gradients * with_trainable)
    cast = (bytes_.frozen != bytes_.frozen_computing, bytes_.trainable != bytes_.trainable_computing)
    return _Unit(sum(parts) + quantized / 2, sum(p * c for p, c in zip(parts, cast, strict=True)), gradients)
