"""Record the storages of a micro-batch on one GPU: when and by which part of the model each was created and released.

The ledger also derives how sizes depend on the tokens and on the rank of adapters. One short run under
``FakeTensorMode`` is enough: tokens and rank are primes that divide no dimension of the model, so a storage whose
number of elements is a multiple of the prime has that dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from autoconf.jobs.stack import Stack
from autoconf.pipeline.catalog import Architecture
from autoconf.pipeline.tracing.first_rank import first_rank
from autoconf.pipeline.tracing.model_setup import TrainingSetup, build_model
from autoconf.pipeline.tracing.recorder import LOSS, SAMPLES, Part, Recorder, SizeChange, TraceError, parts

# Tokens of a sample: a prime; (TOKENS - 1) / 2, half of the tokens that losses keep, is a prime as well.
TOKENS = 2039
_SHIFTED = 1019
_RANKS = (29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71)


class Size(NamedTuple):
    """Bytes of a storage: ``constant + per_token * tokens``, both also per rank of adapters."""

    constant: float = 0.0
    per_token: float = 0.0
    constant_per_rank: float = 0.0
    per_token_per_rank: float = 0.0


@dataclass(frozen=True)
class Storages:
    """All storages of a micro-batch; arrays have shape (storages,), ``sizes`` (storages, 4).

    Storage i is created at moment ``born[i]`` and released at moment ``dead[i]``. Parameters and buffers are excluded.
    """

    born: np.ndarray
    dead: np.ndarray
    sizes: np.ndarray
    gradient_of: (
        np.ndarray
    )  # layer of the parameter whose gradient it is; -1: the rest of the model, -2: not a gradient
    parts: list[Part]  # of each moment
    ops: list[str]


def _size(nbytes: int, itemsize: int, rank: int, tokens_per_sample: int = TOKENS) -> Size:
    """Derive the dimensions of a storage from the prime factors of its number of elements."""
    elements = nbytes // itemsize
    tokens = SAMPLES * tokens_per_sample
    if elements % TOKENS == 0:
        constant, per_token = 0.0, nbytes / tokens
    elif elements % _SHIFTED == 0:  # one token less in each sample
        per_token = nbytes / (tokens - SAMPLES)
        constant = -per_token * SAMPLES
    else:
        constant, per_token = float(nbytes), 0.0
    if elements % rank == 0:
        return Size(0.0, 0.0, constant / rank, per_token / rank)
    return Size(constant, per_token)


def rank_for(architecture: Architecture, layers: Sequence[str]) -> int:
    """Find a rank of adapters that divides no dimension of a model with these layers.

    Raises:
        TraceError: there is no such rank, or the number of tokens divides a dimension.
    """
    model = build_model(TrainingSetup(architecture, "full", Stack()), layers)
    dimensions = {size for p in model.parameters() for size in p.shape}
    if any(size % prime == 0 for size in dimensions for prime in (TOKENS, _SHIFTED)):
        raise TraceError(f"a dimension of the model is a multiple of {TOKENS} or {_SHIFTED}")
    for rank in _RANKS:
        if all(size % rank for size in dimensions):
            return rank
    raise TraceError(f"each of the ranks {_RANKS} divides a dimension of the model")


def trace(job: TrainingSetup, layers: Sequence[str], rank: int, tokens: int = TOKENS) -> Storages:
    """Trace one micro-batch of a short stack on one GPU; only gradients remain at its end.

    Args:
        job: the training setup, on one GPU. Accumulation does not matter.
        layers: kinds of the decoder layers of the short stack.
        rank: rank of adapters, from ``rank_for``.
        tokens: tokens of a sample: ``TOKENS``, or a multiple of them if only the layers matter.

    Raises:
        TraceError: there is a tensor of tokens x tokens.
    """
    job = job.with_rank(rank)
    with first_rank(job, layers) as gpu:
        recorder = Recorder(tokens)
        for tensor in gpu.resident():
            recorder.see(tensor)
        recorder.changes.clear()
        with recorder, parts(gpu.layers, recorder):
            input_ids = torch.zeros((SAMPLES, tokens), dtype=torch.long)
            _attention_mask = torch.empty_like(input_ids)
            labels = torch.zeros_like(
                input_ids
            )  # they live to the end, 8 bytes per token: released figures count them so
            loss = gpu.model(input_ids=input_ids, labels=labels)["loss"]
            recorder.part = LOSS
            loss.backward()
            owner = {p: index for index, layer in enumerate(gpu.layers) for p in layer.parameters()}
            gradients = {recorder.number(p.grad): owner.get(p, -1) for p in gpu.trainable if p.grad is not None}
            changes = list(recorder.changes)
    return _storages(changes, gradients, rank, tokens)


def _storages(changes: Sequence[SizeChange], gradients: dict[int, int], rank: int, tokens: int = TOKENS) -> Storages:
    """Convert a log of changes to storages.

    Args:
        changes: log of a micro-batch.
        gradients: the layer (-1: the rest of the model) of each storage that is a parameter's gradient.
        rank: rank of adapters.
        tokens: tokens of a sample.
    """
    created: dict[int, SizeChange] = {}  # in order: the index of a storage is the moment at which it was created
    dead: dict[int, int] = {}
    for change in changes:
        if change.nbytes > 0:
            if change.storage in created:
                raise TraceError(f"{change.op} makes a storage grow")
            created[change.storage] = change
        elif change.storage in created:  # and did not exist before the micro-batch
            dead[change.storage] = len(created)
    count = len(created)
    return Storages(
        born=np.arange(count),
        dead=np.array([dead.get(storage, count) for storage in created]),
        sizes=np.array([_size(change.nbytes, change.itemsize, rank, tokens) for change in created.values()], float),
        gradient_of=np.array([gradients.get(storage, -2) for storage in created]),
        parts=[change.part for change in created.values()],
        ops=[change.op for change in created.values()],
    )
