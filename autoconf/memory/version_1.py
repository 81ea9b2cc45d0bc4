"""Memory model of version 1.1.0, which supports only the stack ``reference``. Frozen with that version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from autoconf.jobs.stack import REFERENCE, Stack
from autoconf.memory.units import GIB, Floats, Integers, Unsupported

FIGURES = "figures.csv"  # in the version's folder
# The predictor's features, each with the direction in which it may move the probability of fitting.
MONOTONE = {"free_gib": 1, "sharded": -1}
BYTES_PER_PARAMETER = 2  # bfloat16: parameters, gradients and each of AdamW's two states


class Moment(NamedTuple):
    """Bytes alive at one point of a micro-batch, above the resident state.

    ``constant_bytes + bytes_per_token * tokens + sharded_gradient_bytes / gpus``, with ``tokens`` those of one GPU, and
    on several GPUs ``fsdp_bytes`` on top.
    """

    constant_bytes: float
    bytes_per_token: float
    sharded_gradient_bytes: float
    fsdp_bytes: float  # units gathered at that point, and gradients in a reduce-scatter


@dataclass(frozen=True)
class MemoryFigures:
    """Memory figures of one model and method, with or without gradient accumulation."""

    model_name: str
    method: str
    accumulating: bool
    parameters: int  # all parameters, including adapters; tied parameters count once
    trainable_parameters: int
    moments: tuple[Moment, ...]  # the largest is the peak of the micro-batch

    @property
    def key(self) -> tuple[str, str, bool]:
        return self.model_name, self.method, self.accumulating


_SCALARS = ["model_name", "method", "accumulating", "parameters", "trainable_parameters"]
_UNUSED = ["layer_parameters", "root_parameters"]


def read_figures(file: Path | BytesIO) -> list[MemoryFigures]:
    """Read the memory figures of the version; the file has one line per moment.

    Args:
        file: path or content of ``figures.csv``.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not such a table.
    """
    table = pd.read_csv(file, float_precision="round_trip")
    if list(table) != [*_SCALARS, *_UNUSED, *Moment._fields]:
        raise ValueError(f"{FIGURES} has the columns {', '.join(table)}")
    rows = table.drop(columns=_UNUSED).itertuples(index=False, name=None)
    figures = []
    for (name, method, accumulating, total, trainable), of_one in groupby(rows, key=lambda row: row[: len(_SCALARS)]):
        moments = tuple(Moment(*row[len(_SCALARS) :]) for row in of_one)
        figures.append(MemoryFigures(name, method, accumulating, total, trainable, moments))
    return figures


class MemoryTable:
    """Memory figures of several models and methods as arrays for element-wise arithmetic.

    >>> moments = (Moment(0, 8, 0, 200), Moment(50, 2, 0, 200))
    >>> table = MemoryTable([MemoryFigures("tiny", "full", True, 100, 100, moments)])
    >>> table.peak_bytes(np.array([0, 0]), gpus=np.array([1, 2]), tokens=np.array([10, 5])).tolist()
    [1000.0, 760.0]
    """

    def __init__(self, figures: Sequence[MemoryFigures]) -> None:
        self.rows = {f.key: row for row, f in enumerate(figures)}
        self.parameters = np.array([f.parameters for f in figures], dtype=float)
        self.trainable = np.array([f.trainable_parameters for f in figures], dtype=float)
        self.accumulating = np.array([f.accumulating for f in figures], dtype=bool)
        # Shape (moments, figures); the padding with zeros never exceeds a real moment.
        depth = max(len(f.moments) for f in figures)
        self._moments = np.zeros((len(Moment._fields), depth, len(figures)))
        for column, f in enumerate(figures):
            self._moments[:, : len(f.moments), column] = np.transpose(f.moments)

    def row(self, model: str, method: str, stack: Stack) -> int:
        """The row of a job.

        Args:
            model: a model of the version.
            method: ``full`` or ``lora``.
            stack: the training stack.

        Raises:
            Unsupported: the stack is not ``reference``.
        """
        known = REFERENCE.model_copy(update={"gradient_accumulation": stack.gradient_accumulation})
        if stack != known:
            other = [name for name, value in stack if value != getattr(known, name)]
            wanted, supported = ([f"{name} {getattr(of, name)!r}" for name in other] for of in (stack, known))
            raise Unsupported(wanted, f", which answers for the stack reference only ({', '.join(supported)})")
        return self.rows[model, method, stack.gradient_accumulation]

    def resident_bytes(self, rows: Integers, gpus: Integers) -> Floats:
        """Bytes of weights, optimizer states and one set of gradients, all sharded: the minimum that training holds."""
        return np.asarray(BYTES_PER_PARAMETER * (self.parameters[rows] + 3 * self.trainable[rows]) / gpus)

    def gradient_bytes(self, rows: Integers) -> Floats:
        """Bytes of gradients that stay whole on every GPU between micro-batches; 0 without accumulation."""
        return np.where(self.accumulating[rows], BYTES_PER_PARAMETER * self.trainable[rows], 0.0)

    def peak_bytes(self, rows: Integers, gpus: Integers, tokens: Floats | Integers) -> Floats:
        """Peak bytes per GPU.

        Args:
            rows: index of each job's figures.
            gpus: number of GPUs that the job is sharded over, >= 1.
            tokens: tokens per GPU and micro-batch, ``batch_size / gpus * tokens_per_sample``.

        Returns:
            The peak of the micro-batch or of the optimizer step, whichever is larger, without the safety margin for the
            CUDA context, workspaces, NCCL and fragmentation.
        """
        weights = BYTES_PER_PARAMETER * self.parameters[rows] / gpus
        trainable = BYTES_PER_PARAMETER * self.trainable[rows]
        optimizer = 2 * trainable / gpus
        micro_batch = np.zeros(len(rows))
        for constant, slope, sharded, fsdp in zip(*self._moments, strict=True):
            moment = constant[rows] + slope[rows] * tokens + sharded[rows] / gpus + fsdp[rows] * (gpus > 1)
            np.maximum(micro_batch, moment, out=micro_batch)
        training = weights + optimizer + self.gradient_bytes(rows) + micro_batch
        # AdamW's foreach step holds the gradients, and temporaries as large as the trainable parameters.
        step = weights + optimizer + 2 * trainable / gpus
        return np.maximum(training, step)

    def free_gib(self, rows: Integers, gpus: Integers, tokens: Floats | Integers, usable_gib: Floats) -> Floats:
        """GiB of a GPU that the peak leaves free, negative if the job does not fit, shape (candidates,)."""
        return usable_gib - self.peak_bytes(rows, gpus, tokens) / GIB
