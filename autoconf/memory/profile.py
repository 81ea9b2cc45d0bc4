"""Memory figures of models: what the closed form of ``autoconf.memory`` needs to know, and their table on disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from autoconf.memory.optimizers import Shape


class Point(IntEnum):
    """Where in a micro-batch a moment lies: what FSDP has gathered depends on nothing else.

    ``LAST`` is the decoder layer next to the head, ``FIRST`` that next to the embeddings, ``MIDDLE`` any other;
    ``LATE`` is the part of a layer's backward pass after its first adapter began its own.
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
    HEAD_OVER = 20  # after the model's own forward pass, in what wraps it
    # Not moments themselves: what the layers keep for the backward pass, while the head runs and after the forward
    # pass.
    KEPT = 21
    KEPT_OVER = 22

    @property
    def late(self) -> Point:
        return Point(self + 1)


class StackMoment(NamedTuple):
    """Bytes alive at one moment of a micro-batch on one GPU, beside parameters and optimizer states.

    Activations are ``constant + per_token * tokens + rank * (constant_per_rank + per_token_per_rank * tokens)``.
    Gradients are those of adapters per rank, or else of all parameters.
    """

    point: Point
    constant: float
    per_token: float
    constant_per_rank: float
    per_token_per_rank: float
    own: float  # gradients of this layer (or of embeddings and head) so far
    newborn: float  # of them, the one that is just made
    done: float  # gradients of the layers behind
    rest: float  # gradients of embeddings and head


@dataclass(frozen=True)
class Units:
    """Parameters by FSDP's units: of the whole model, of one decoder layer (the largest), of the root unit (the rest).

    ``trainable`` ones of adapters are per rank; ``quantized`` ones have 4 bits.
    """

    frozen: int
    trainable: int
    quantized: int
    layer_frozen: int
    layer_trainable: int
    layer_quantized: int
    root_frozen: int
    root_trainable: int
    maxima_bytes: int  # of the quantisation
    buffer_bytes: int = 0  # of the whole model

    @property
    def unsharded_bytes(self) -> int:
        """What no sharding divides."""
        return self.maxima_bytes + self.buffer_bytes


class LayerWay(NamedTuple):
    """A way in which decoder layers can run: what of a stack changes the bytes that they hold."""

    method: str
    torch_dtype: str
    mixed_precision: str
    adapter_dtype: str
    dropout: bool
    gradient_checkpointing: str
    lora_targets: str


class HeadWay(NamedTuple):
    """A way in which head and loss can run."""

    trains: bool
    torch_dtype: str
    mixed_precision: str
    loss: str


class Trainable(NamedTuple):
    """What of a model trains; of adapters those of rank 1."""

    units: Units
    shapes: tuple[tuple[Shape, int], ...]  # each with how many parameters have it


@dataclass(frozen=True)
class ModelFigures:
    """One model, in every way that could be traced, and why it could not in others."""

    model_name: str
    made_of: str = ""  # the digest of what they were traced from
    # Moments have the columns of ``StackMoment``, shape (moments, 9).
    layers: dict[LayerWay, np.ndarray] = field(default_factory=dict)
    heads: dict[HeadWay, np.ndarray] = field(default_factory=dict)
    units: dict[tuple[str, str], Trainable] = field(default_factory=dict)  # by method and targets
    problems: dict[tuple[object, ...], str] = field(default_factory=dict)  # by any of these keys, or with a sharding
