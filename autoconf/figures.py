"""Memory figures of models: what the closed form of ``autoconf.memory`` needs to know, and their table on disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
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
