"""Memory of optimizers: their states, and the temporaries of a step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from autoconf.jobs.stack import Optim


class Shape(NamedTuple):
    """Shape and bytes per element of a trainable parameter.

    >>> Shape((1000, 8), itemsize=2).elements
    8000
    """

    dimensions: tuple[int, ...]
    itemsize: int
    embedding: bool = False  # a parameter of an ``nn.Embedding``, including a tied head

    @property
    def elements(self) -> int:
        return math.prod(self.dimensions)


class OptimizerBytes(NamedTuple):
    """Bytes of an optimizer, in addition to parameters and gradients."""

    states: float  # held from the end of the first step on
    step: float  # temporaries during a step


Parameters = list[tuple[Shape, int]]  # shapes, each with the number of parameters that have it


def _adamw_foreach(parameters: Parameters) -> OptimizerBytes:
    # torch/optim/adamw.py: two states in the dtype of the parameter; torch._foreach_sqrt of all second moments needs
    # one more.
    size = sum(count * p.elements * p.itemsize for p, count in parameters)
    return OptimizerBytes(2 * size, size)


def _adamw_fused(parameters: Parameters) -> OptimizerBytes:
    # The same states; aten::_fused_adamw_ works in place.
    return OptimizerBytes(2 * sum(count * p.elements * p.itemsize for p, count in parameters), 0)


def _bitsandbytes(states: int, bits: int, *, paged: bool = False) -> Callable[[Parameters], OptimizerBytes]:
    """The bytes of an optimizer of bitsandbytes with one or two states.

    bitsandbytes/optim/optimizer.py, init_state of Optimizer1State and Optimizer2State: states of one byte, each with a
    float32 absmax for each block of 256, or of four bytes, whatever the dtype of the parameter. get_state_buffer: paged
    states of 100,000 elements or more are in managed memory, which is moved off the GPU when other tensors need the
    space; their absmax stays on the GPU.
    """

    def held(parameter: Shape) -> float:
        in_8bit = bits == 8 and _in_8bit(parameter)
        absmax = 4 / 256 if in_8bit else 0.0
        moved = paged and parameter.elements >= 100_000
        return parameter.elements * states * (absmax if moved else (1 if in_8bit else 4) + absmax)

    return lambda parameters: OptimizerBytes(sum(count * held(p) for p, count in parameters), 0)


def _in_8bit(parameter: Shape) -> bool:
    # The same functions use float32 states for tensors under 4,096 elements, and transformers/trainer.py,
    # create_optimizer, for embeddings.
    return parameter.elements >= 4096 and not parameter.embedding


def _adafactor(parameters: Parameters) -> OptimizerBytes:
    # transformers/optimization.py, Adafactor (no first moment): float32 sums over rows and columns of parameters with
    # two dimensions or more, otherwise one float32 state. A step handles one parameter at a time: the squared gradient
    # and its sum with eps, in float32, and for a bfloat16 parameter float32 copies of it and of its gradient; the
    # float32 update of the previous parameter is still held.
    factored = ((p, count) for p, count in parameters if len(p.dimensions) >= 2)
    states = sum(4 * count * (p.elements // p.dimensions[-1] + p.elements // p.dimensions[-2]) for p, count in factored)
    states += sum(4 * count * p.elements for p, count in parameters if len(p.dimensions) < 2)
    ordered = [p for p, count in parameters for _ in range(min(count, 2))]  # each follows itself, or the shape before
    before = [0, *(p.elements for p in ordered)]
    steps = (4 * b + p.elements * (16 if p.itemsize == 2 else 8) for b, p in zip(before, ordered, strict=False))
    return OptimizerBytes(states, max(steps))


def _sgd(parameters: Parameters) -> OptimizerBytes:
    # The Trainer's sgd has no momentum, and torch._foreach_add_ works in place.
    return OptimizerBytes(0, 0)


_OPTIMIZERS: dict[str, Callable[[Parameters], OptimizerBytes]] = {
    "adamw_torch": _adamw_foreach,
    "adamw_torch_fused": _adamw_fused,
    "adamw_bnb_8bit": _bitsandbytes(2, 8),
    "adamw_8bit": _bitsandbytes(2, 8),  # the same, by another name
    "paged_adamw_8bit": _bitsandbytes(2, 8, paged=True),
    "paged_adamw_32bit": _bitsandbytes(2, 32, paged=True),
    "lion_8bit": _bitsandbytes(1, 8),
    "lion_32bit": _bitsandbytes(1, 32),
    "paged_lion_8bit": _bitsandbytes(1, 8, paged=True),
    "paged_lion_32bit": _bitsandbytes(1, 32, paged=True),
    "adafactor": _adafactor,
    "sgd": _sgd,
}


def optimizer_bytes(
    optim: Optim, parameters: Iterable[Shape], counts: Iterable[int] = itertools.repeat(1)
) -> OptimizerBytes:
    """Bytes of an optimizer for trainable parameters that are all on one GPU.

    Args:
        optim: the Trainer's name of the optimizer.
        parameters: shapes of the trainable parameters, in the order in which it steps over them.
        counts: how many consecutive parameters have each shape, >= 1; by default one.

    >>> optimizer_bytes("adamw_torch", [Shape((1000, 8), 2)])
    OptimizerBytes(states=32000, step=16000)
    >>> optimizer_bytes("adamw_torch", [Shape((1000, 8), 2)], [10])
    OptimizerBytes(states=320000, step=160000)
    >>> optimizer_bytes("sgd", [Shape((1000, 8), 2)])
    OptimizerBytes(states=0, step=0)
    """
    return _OPTIMIZERS[optim](list(zip(parameters, counts, strict=False)))
