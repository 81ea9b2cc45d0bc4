"""Memory figures of models: what the closed form of ``autoconf.memory`` needs to know, and their table on disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pandas as pd


class Moment(NamedTuple):
    """Bytes alive at one point of a micro-batch, above the resident state.

    ``constant_bytes + bytes_per_token * tokens + sharded_gradient_bytes / gpus``, with ``tokens`` those of one GPU, and
    on several GPUs ``fsdp_bytes`` on top.
    """

    constant_bytes: float
    bytes_per_token: float
    sharded_gradient_bytes: float
    fsdp_bytes: float  # units gathered at that point, and gradients on their way through a reduce-scatter


@dataclass(frozen=True)
class MemoryFigures:
    """One model, trained by one method, with or without gradient accumulation."""

    model_name: str
    method: str
    accumulating: bool
    parameters: int  # all of them, adapters included, tied ones once
    trainable_parameters: int
    layer_parameters: int  # one decoder layer
    root_parameters: int  # embeddings, final norm and lm_head: the root unit of FSDP
    moments: tuple[Moment, ...]  # their upper envelope is the peak of the micro-batch

    @property
    def key(self) -> tuple[str, str, bool]:
        return self.model_name, self.method, self.accumulating


_SCALARS = [
    "model_name",
    "method",
    "accumulating",
    "parameters",
    "trainable_parameters",
    "layer_parameters",
    "root_parameters",
]


def write_figures(figures: Iterable[MemoryFigures], path: Path) -> None:
    """Write figures as CSV, one line a moment, so that a change reads well in a diff."""
    rows = [[*(getattr(f, name) for name in _SCALARS), *moment] for f in figures for moment in f.moments]
    table = pd.DataFrame(rows, columns=[*_SCALARS, *Moment._fields])
    table.to_csv(path, index=False, lineterminator="\n")


def read_figures(path: Path) -> list[MemoryFigures]:
    """Read what ``write_figures`` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not such a table.
    """
    table = pd.read_csv(path, float_precision="round_trip")
    if list(table) != [*_SCALARS, *Moment._fields]:
        raise ValueError(f"{path.name} has the columns {', '.join(table)}")
    figures = []
    for (name, method, accumulating, *counts), rows in groupby(
        table.itertuples(index=False, name=None), key=lambda row: row[: len(_SCALARS)]
    ):
        moments = tuple(Moment(*row[len(_SCALARS) :]) for row in rows)
        total, trainable, layer, root = counts
        figures.append(MemoryFigures(name, method, accumulating, total, trainable, layer, root, moments))
    return figures


# --- any stack: version 2.0.0 on ---------------------------------------------------------------------------------------


class Point(IntEnum):
    """Where in a micro-batch a moment lies: what FSDP has gathered depends on nothing else.

    ``LAST`` is the decoder layer next to the head, ``FIRST`` that next to the embeddings, ``MIDDLE`` any other; ``LATE``
    is the part of a layer's backward pass after its first adapter began its own.
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

    @property
    def late(self) -> Point:
        return Point(self + 1)


class StackMoment(NamedTuple):
    """Bytes alive at one moment of a micro-batch on one GPU, beside parameters and optimizer states.

    Activations are ``constant + per_token * tokens + rank * (constant_per_rank + per_token_per_rank * tokens)``. Gradients
    are those of adapters per rank, or else of all parameters.
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
    maxima_bytes: int  # of the quantisation, whole on every GPU
