"""Memory profile of a model, traced from its training code under every combination of settings that changes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from autoconf.memory.optimizers import Shape
from autoconf.memory.units import Floats

if TYPE_CHECKING:
    from autoconf.memory.adapted import AdaptedModules

_Key = TypeVar("_Key", bound=tuple[Any, ...])


class Point(IntEnum):
    """Points in time of a micro-batch. The units that FSDP has gathered depend only on the point.

    ``LAST`` is the decoder layer next to the head, ``FIRST`` the one next to the embeddings, ``MIDDLE`` any other.
    ``LATE`` is the part of a layer's backward pass after its first adapter started its own backward pass.
    """

    EMBEDDING = 0
    FIRST_GATHER = 1  # before the first layer
    GATHER = 2  # before another layer
    FORWARD = 3
    HEAD = 4
    TURN = 5  # between the forward and the backward pass
    LOSS = 6  # backward pass of loss and head
    LAST_START = 7
    LAST = 8
    LAST_LATE = 9
    START = 10
    MIDDLE = 11
    MIDDLE_LATE = 12
    FIRST_START = 13
    FIRST = 14
    FIRST_LATE = 15
    END = 16  # a layer's backward pass is over, its gradients are about to be reduced
    FIRST_END = 17
    TAIL = 18  # backward pass of the embeddings
    TAIL_END = 19
    HEAD_OVER = 20  # after the model's own forward pass, in the code that wraps the model
    # Not moments, but tensors that the layers keep for the backward pass: while the head runs, and after the forward
    # pass.
    KEPT = 21
    KEPT_OVER = 22
    TOWER = 23  # forward pass of a vision tower, before the first decoder layer
    TOWER_OVER = 24  # ``FIRST_GATHER`` after a tower

    @property
    def late(self) -> Point:
        """The ``LATE`` part of a layer's backward pass."""
        return Point(self + 1)


class StackMoment(NamedTuple):
    """Bytes alive at one moment of a micro-batch on one GPU, apart from parameters and optimizer states.

    Activations are ``constant + per_token * tokens + rank * (constant_per_rank + per_token_per_rank * tokens)``.
    Gradients of adapters are per rank; without adapters, gradients are those of all parameters.
    """

    point: Point
    constant: float
    per_token: float
    constant_per_rank: float
    per_token_per_rank: float
    layer_gradients: float  # gradients so far of the layer (or of embeddings and head) in its backward pass
    newest_gradient: float  # the part of ``layer_gradients`` that was produced last
    finished_gradients: float  # gradients of the layers whose backward pass is over
    root_gradients: float  # gradients of embeddings and head


@dataclass(frozen=True)
class Units:
    """Numbers of parameters of the whole model, of its largest decoder layer, and of the root unit (the rest).

    Decoder layers and the root are FSDP's units. ``trainable`` parameters of adapters are per rank; ``quantized``
    parameters have 4 bits.
    """

    frozen: int
    trainable: int
    quantized: int
    layer_frozen: int
    layer_trainable: int
    layer_quantized: int
    root_frozen: int
    root_trainable: int
    absmax_bytes: int  # quantization constants of bitsandbytes
    buffer_bytes: int = 0  # buffers of the whole model

    @property
    def unsharded_bytes(self) -> int:
        """Bytes that no sharding divides."""
        return self.absmax_bytes + self.buffer_bytes


class TowerUnits(NamedTuple):
    """What a frozen vision tower beside a language model changes, apart from ``Units``.

    Its blocks are units of FSDP, and everything else of it belongs to the root.
    """

    blocks: int = 0  # frozen parameters of blocks, which ``root_frozen`` includes
    root_quantized: int = 0  # quantized parameters of the root
    inputs_per_token: float = 0.0  # bytes of inputs that are on the GPU during the optimizer's step


NO_TOWER = TowerUnits()


class LayerWay(NamedTuple):
    """The settings of a stack that change the memory of decoder layers."""

    method: str
    torch_dtype: str
    mixed_precision: str
    adapter_dtype: str
    dropout: bool
    gradient_checkpointing: str
    lora_targets: str


IN_ORDER = "-in-order"  # end of a way's lora_targets: layers before the first one with adapters keep nothing
UPCAST_NORMS = "upcast-norms"  # torch_dtype of a way: a bfloat16 head behind norms that became float32


class HeadWay(NamedTuple):
    """The settings of a stack that change the memory of head and loss."""

    trains: bool
    torch_dtype: str
    mixed_precision: str
    loss: str


class Trainable(NamedTuple):
    """The trainable parameters of a model under one method; adapters have rank 1."""

    units: Units
    shapes: tuple[tuple[Shape, int], ...]  # each with the number of parameters of that shape

    @property
    def experts(self) -> tuple[tuple[Shape, int], ...]:
        """The shapes of tensors that hold all experts of a layer, each with the number of layers."""
        # Convolutions of Mamba layers have a dimension of 1.
        return tuple(each for each in self.shapes if len(each[0].dimensions) == 3 and 1 not in each[0].dimensions)


@dataclass(frozen=True)
class ModelProfile:
    """The memory profile of one model for all settings that could be traced, and the reasons for the others."""

    model_name: str
    made_of: str = ""  # digest of the traced code and settings
    # Moments have the columns of ``StackMoment``, shape (moments, 9), in bytes.
    layers: dict[LayerWay, Floats] = field(default_factory=dict)
    heads: dict[HeadWay, Floats] = field(default_factory=dict)
    units: dict[tuple[str, str], Trainable] = field(default_factory=dict)  # by method and LoRA targets
    problems: dict[tuple[object, ...], str] = field(default_factory=dict)  # by any key above, or one with a sharding
    modules: AdaptedModules | None = None  # absent from profiles up to version 3.0.0

    def missing(self, keys: Sequence[_Key]) -> list[_Key]:
        """The ways, or the methods with LoRA targets, that the profile has neither moments nor a reason for."""
        known = {*self.layers, *self.heads, *self.units}
        reasons = {" ".join(map(str, key)) for key in self.problems}  # as read from disk: words
        return [key for key in keys if key not in known and " ".join(map(str, key)) not in reasons]


def optimizer_shapes(trainable: Trainable, rank: int | None, itemsize: int, *, flat: bool) -> Sequence[Shape]:
    """The optimizer's shapes of the trainable ones, each once. With FSDP1 they are pieces of flat parameters."""
    shapes: list[Shape] = []
    for shape, _ in trainable.shapes:
        dimensions = shape.dimensions
        if rank is not None:  # the rank is the smallest dimension: one, or as many as there are experts
            at = dimensions.index(min(dimensions))
            dimensions = (*dimensions[:at], dimensions[at] * rank, *dimensions[at + 1 :])
        if flat:
            dimensions = (math.prod(dimensions),)
        shapes.append(Shape(dimensions, itemsize, shape.embedding))
    return shapes
