"""Peak memory per GPU of a fine-tuning job, in closed form over traced figures.

The figures come from traces of the real training code; what stands here is only how FSDP divides them over GPUs. All
arithmetic is in bytes, element-wise over numpy arrays: one job is an array of length one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autoconf.jobs.stack import REFERENCE, Stack
from autoconf.memory.profile import MemoryFigures, Moment

GIB = 2**30
BYTES_PER_PARAMETER = 2  # bfloat16, for parameters, gradients and each of AdamW's two states

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


class Outside(NamedTuple):
    """A way to train that figures do not know: what was asked for, and why it has none."""

    asked: tuple[str, ...]
    why: str  # goes on after the version's name


class MemoryTable:
    """Figures of several models and methods under the reference stack, laid out for element-wise arithmetic.

    >>> from autoconf.memory.version_1 import Moment
    >>> moments = (Moment(0, 8, 0, 200), Moment(50, 2, 0, 200))
    >>> table = MemoryTable([MemoryFigures("tiny", "full", True, 100, 100, 30, 40, moments)])
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

    def row(self, model: str, method: str, stack: Stack) -> int | Outside:
        """The row of a job's figures, or the settings that it would have to give up."""
        known = REFERENCE.model_copy(update={"gradient_accumulation": stack.gradient_accumulation})
        if stack != known:
            other = [name for name, value in stack if value != getattr(known, name)]
            asked, answered = ([f"{name} {getattr(of, name)!r}" for name in other] for of in (stack, known))
            return Outside(tuple(asked), f", which answers for the stack reference only ({', '.join(answered)})")
        return self.rows[model, method, stack.gradient_accumulation]

    def resident_bytes(self, rows: Integers, gpus: Integers) -> Floats:
        """Weights, optimizer state and one set of gradients, all sharded: the least that any training holds."""
        return BYTES_PER_PARAMETER * (self.parameters[rows] + 3 * self.trainable[rows]) / gpus

    def gradient_bytes(self, rows: Integers) -> Floats:
        """Gradients that stay whole on every GPU between micro-batches (``no_sync``); 0 without accumulation."""
        return np.where(self.accumulating[rows], BYTES_PER_PARAMETER * self.trainable[rows], 0.0)

    def peak_bytes(self, rows: Integers, gpus: Integers, tokens: Floats | Integers) -> Floats:
        """Peak bytes per GPU.

        Args:
            rows: index of each job's figures.
            gpus: number of GPUs that the job is sharded over, >= 1.
            tokens: tokens per GPU and micro-batch, ``batch_size / gpus * tokens_per_sample``.

        Returns:
            The larger of the peaks of training and of the optimizer step, without the reserve for the CUDA context,
            workspaces, NCCL and fragmentation.
        """
        weights = BYTES_PER_PARAMETER * self.parameters[rows] / gpus
        trainable = BYTES_PER_PARAMETER * self.trainable[rows]
        optimizer = 2 * trainable / gpus
        micro_batch = np.zeros(len(rows))
        for constant, slope, sharded, fsdp in zip(*self._moments, strict=True):
            moment = constant[rows] + slope[rows] * tokens + sharded[rows] / gpus + fsdp[rows] * (gpus > 1)
            np.maximum(micro_batch, moment, out=micro_batch)
        training = weights + optimizer + self.gradient_bytes(rows) + micro_batch
        # AdamW's foreach step holds the gradients and temporaries of one more copy of the trainable parameters.
        step = weights + optimizer + 2 * trainable / gpus
        return np.maximum(training, step)


@dataclass(frozen=True)
class RankFigures:
    """What one GPU of a job holds, under one stack: at each moment ``constant + per_token * tokens + sharded / gpus``
    bytes.

    Moments are triples of these coefficients. They hold everything but the optimizer's states.

    >>> figures = RankFigures(moments=((0, 8, 200),), end=(0, 0, 150), states=100, step=50, shards_states=True)
    >>> figures.peak_bytes(tokens=10, gpus=2)
    230.0
    """

    moments: tuple[tuple[float, float, float], ...]  # of forward and backward passes
    end: tuple[float, float, float]  # of the backward pass, where the optimizer steps
    states: float  # the optimizer's, on all GPUs together
    step: float  # its temporaries, likewise
    shards_states: bool  # False: every GPU has all of them

    def peak_bytes(self, tokens: float, gpus: int) -> float:
        """Peak bytes of a GPU.

        Args:
            tokens: tokens per GPU and micro-batch.
            gpus: number of GPUs, >= 1; 1 only for figures that were traced for one.
        """
        return self._peak(tokens, gpus)[0]

    def activation_bytes(self, tokens: float, gpus: int) -> float:
        """Of the peak, what grows with the tokens.

        >>> RankFigures(((0, 8, 200),), (0, 0, 150), 100, 50, True).activation_bytes(tokens=10, gpus=2)
        80
        """
        return self._peak(tokens, gpus)[1]

    def _peak(self, tokens: float, gpus: int) -> tuple[float, float]:
        share = 1 / gpus if self.shards_states else 1.0
        steps = [0.0] * len(self.moments) + [self.step * share]
        return max(
            (self.states * share + constant + per_token * tokens + sharded / gpus + step, per_token * tokens)
            for (constant, per_token, sharded), step in zip((*self.moments, self.end), steps, strict=True)
        )


@dataclass(frozen=True)
class Reserve:
    """GiB of a GPU that must stay free beside the peak: they grow with activations, on several GPUs faster than on one.

    Where a cluster was seen to hold more than traces say, a share of the peak must stay free on top of them.

    >>> reserve = Reserve(activations_gib=(0, 100), one_gpu_gib=(3, 8), several_gpus_gib=(3, 27))
    >>> reserve.gib(np.array([0, 50, 50]), gpus=np.array([1, 1, 2])).tolist()
    [3.0, 5.5, 15.0]
    """

    activations_gib: tuple[float, ...]  # rising, from 0 to what no GPU can hold
    one_gpu_gib: tuple[float, ...]  # the reserve at each of them; linear in between
    several_gpus_gib: tuple[float, ...]
    peak_share: float = 0.0  # of every moment's bytes, >= 0

    def gib(self, activations_gib: Floats, gpus: Integers) -> Floats:
        """The reserve of each job, shape (jobs,)."""
        one, several = (
            np.interp(activations_gib, self.activations_gib, of) for of in (self.one_gpu_gib, self.several_gpus_gib)
        )
        return np.where(np.asarray(gpus) > 1, several, one)
