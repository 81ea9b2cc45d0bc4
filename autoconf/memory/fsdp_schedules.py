"""What FSDP has gathered at each point of a micro-batch, read from traces of PyTorch's wrappers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from autoconf.memory.profile import Point
from autoconf.memory.units import Floats, Integers


class Gathered(NamedTuple):
    """Copies of a unit's parameters or gradients that a GPU holds at a point, in addition to its shards."""

    root: int = 0  # whole parameters of the root unit
    layer: int = 0  # whole parameters of a decoder layer
    reduced: int = 0  # buffers as large as a layer's gradients
    root_reduced: int = 0  # buffers as large as the root's gradients
    root_cast: int = 0  # the root's shards in the dtype of computation
    layer_cast: int = 0  # a layer's shards in the dtype of computation
    kept: int = 0  # whole parameters of all decoder layers that were gathered and not released yet


class Schedule:
    """The copies that a GPU holds at each point. A point may have several phases; the largest one counts.

    Args:
        phases: by the value of a ``Point``.
    """

    def __init__(self, phases: Mapping[int, tuple[Gathered, ...]]) -> None:
        self.phases = dict(phases)
        self._count = np.array([len(self.phases.get(point, ())) for point in Point])
        self._first = np.cumsum(self._count) - self._count
        self._copies = np.array([phase for point in Point for phase in self.phases.get(point, ())], float).T

    def at(self, points: Integers) -> tuple[Integers, Floats]:
        """The index of each phase's point, shape (phases,), and the copies, shape (fields of ``Gathered``, phases)."""
        count = self._count[points]
        index = np.repeat(np.arange(len(points)), count)
        earlier = np.arange(len(index)) - np.repeat(np.cumsum(count) - count, count)  # phases of the same point
        return index, self._copies[:, self._first[points[index]] + earlier]


# FSDP1: torch/distributed/fsdp/_runtime_utils.py and
# _flat_param.py. The parameters of a layer are views of its flat parameter, and backward prefetch gathers the next unit
# before a layer's backward pass begins.
FSDP1 = Schedule(
    {
        Point.EMBEDDING: (Gathered(root=1), Gathered(root=1, root_cast=1)),
        Point.FIRST_GATHER: (Gathered(root=1, layer=1, layer_cast=1),),
        Point.GATHER: (Gathered(root=1, layer=1, layer_cast=1),),
        Point.FORWARD: (Gathered(root=1, layer=1),),
        Point.HEAD: (Gathered(root=1),),
        Point.HEAD_OVER: (Gathered(root=1),),
        Point.TURN: (Gathered(root=1, layer=1, layer_cast=1),),
        Point.LOSS: (Gathered(root=1, layer=1),),
        Point.LAST_START: (Gathered(root=1, layer=2, layer_cast=1),),
        Point.LAST: (Gathered(root=1, layer=2),),
        Point.LAST_LATE: (Gathered(root=1, layer=2),),
        Point.START: (Gathered(root=1, layer=2, layer_cast=1),),
        Point.MIDDLE: (Gathered(root=1, layer=2),),
        Point.MIDDLE_LATE: (Gathered(root=1, layer=2),),
        Point.FIRST_START: (Gathered(root=1, layer=1),),
        Point.FIRST: (Gathered(root=1, layer=1),),
        Point.FIRST_LATE: (Gathered(root=1, layer=1),),
        Point.END: (Gathered(root=1, layer=2, reduced=1),),
        Point.FIRST_END: (Gathered(root=1, layer=1, reduced=1),),
        Point.TAIL: (Gathered(root=1),),
        Point.TAIL_END: (Gathered(root=1, root_reduced=1),),
        Point.TOWER: (Gathered(root=1),),
        Point.TOWER_OVER: (Gathered(root=1, layer=1, layer_cast=1),),
    }
)
# Adapters are separate units: the previous layer is gathered when the first adapter begins its backward pass.
FSDP1_ADAPTERS = Schedule(
    FSDP1.phases
    | {
        Point.LAST_START: (Gathered(root=1, layer=1),),
        Point.LAST: (Gathered(root=1, layer=1),),
        Point.START: (Gathered(root=1, layer=1),),
        Point.MIDDLE: (Gathered(root=1, layer=1),),
    }
)
# torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py and _fsdp_collectives.py: a unit is gathered into one buffer
# and copied out of it; the buffer lives until the next unit is needed. The input of a reduction lives until the next
# reduction.
FSDP2 = Schedule(
    {
        Point.EMBEDDING: (Gathered(root=2),),
        Point.FIRST_GATHER: (Gathered(root=2, layer=2),),
        Point.GATHER: (Gathered(root=1, layer=3),),
        Point.FORWARD: (Gathered(root=1, layer=2),),
        Point.HEAD: (Gathered(root=1, layer=1),),
        Point.HEAD_OVER: (Gathered(root=1, layer=1),),
        Point.TURN: (Gathered(root=2), Gathered(root=1, layer=1, layer_cast=1)),
        Point.LOSS: (Gathered(root=1, layer=1),),
        Point.LAST_START: (Gathered(root=1, layer=2, layer_cast=1),),
        Point.LAST: (Gathered(root=1, layer=2),),
        Point.LAST_LATE: (Gathered(root=1, layer=2),),
        Point.START: (Gathered(root=1, layer=2, reduced=1, layer_cast=1),),
        Point.MIDDLE: (Gathered(root=1, layer=2, reduced=1),),
        Point.MIDDLE_LATE: (Gathered(root=1, layer=2, reduced=1),),
        Point.FIRST_START: (Gathered(root=1, layer=1, reduced=1),),
        Point.FIRST: (Gathered(root=1, layer=1, reduced=1),),
        Point.FIRST_LATE: (Gathered(root=1, layer=1, reduced=1),),
        Point.END: (Gathered(root=1, layer=1, reduced=1),),
        Point.FIRST_END: (Gathered(root=1, reduced=1),),
        Point.TAIL: (Gathered(root=1, reduced=1),),
        Point.TAIL_END: (Gathered(root_reduced=1),),
        # The first block of a tower releases the buffer that the root was copied out of.
        Point.TOWER: (Gathered(root=1),),
        Point.TOWER_OVER: (Gathered(root=1, layer=2),),
    }
)
# SHARD_GRAD_OP and its like, _runtime_utils.py, _post_forward_reshard: a layer is gathered in the forward pass and
# released after its backward pass.
FSDP1_KEEPS = Schedule(
    {
        **{point: (Gathered(root=1, kept=1),) for point in FSDP1.phases},
        Point.EMBEDDING: (Gathered(root=1), Gathered(root=1, root_cast=1)),
        Point.FIRST_GATHER: (Gathered(root=1, layer=1, layer_cast=1),),
        Point.GATHER: (Gathered(root=1, kept=1, layer_cast=1),),
        Point.END: (Gathered(root=1, kept=1, reduced=1),),
        Point.FIRST_END: (Gathered(root=1, kept=1, reduced=1),),
        Point.TAIL: (Gathered(root=1),),
        Point.TAIL_END: (Gathered(root=1, root_reduced=1),),
    }
)
# _should_free_in_backward: without gradients to reduce, nothing is released at all.
FSDP1_HOLDS_ALL = Schedule(
    {
        **{point: (Gathered(root=1, kept=1),) for point in FSDP1.phases},
        Point.END: (Gathered(root=1, kept=1, reduced=1),),
        Point.FIRST_END: (Gathered(root=1, kept=1, reduced=1),),
        Point.TAIL_END: (Gathered(root=1, kept=1, root_reduced=1),),
    }
)
# _fully_shard/_fsdp_param_group.py, reshard: likewise; the buffer that a layer was copied out of lives as before.
FSDP2_KEEPS = Schedule(
    {
        Point.EMBEDDING: (Gathered(root=2),),
        Point.FIRST_GATHER: (Gathered(root=2, layer=2),),
        Point.GATHER: (Gathered(root=1, kept=1, layer=2),),
        Point.FORWARD: (Gathered(root=1, kept=1, layer=1),),
        Point.HEAD: (Gathered(root=1, kept=1, layer=1),),
        Point.HEAD_OVER: (Gathered(root=1, kept=1, layer=1),),
        Point.TURN: (Gathered(root=1, kept=1),),
        Point.LOSS: (Gathered(root=1, kept=1),),
        Point.LAST_START: (Gathered(root=1, kept=1),),
        Point.LAST: (Gathered(root=1, kept=1),),
        Point.LAST_LATE: (Gathered(root=1, kept=1),),
        Point.START: (Gathered(root=1, kept=1, reduced=1),),
        Point.MIDDLE: (Gathered(root=1, kept=1, reduced=1),),
        Point.MIDDLE_LATE: (Gathered(root=1, kept=1, reduced=1),),
        Point.FIRST_START: (Gathered(root=1, kept=1, reduced=1),),
        Point.FIRST: (Gathered(root=1, kept=1, reduced=1),),
        Point.FIRST_LATE: (Gathered(root=1, kept=1, reduced=1),),
        Point.END: (Gathered(root=1, kept=1, layer=-1, reduced=1),),
        Point.FIRST_END: (Gathered(root=1, reduced=1),),
        Point.TAIL: (Gathered(root=1, reduced=1),),
        Point.TAIL_END: (Gathered(root_reduced=1),),
    }
)
