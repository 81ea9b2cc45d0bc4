"""Trace the memory of one rank of a fine-tuning job, op by op, on fake tensors.

The real code (modeling, adapters, autograd and FSDP's wrappers) runs under ``FakeTensorMode``: every op reports the
storages that it would create, and no memory is allocated. Three properties make a few short traces exact for every job:

- the size of every storage is affine in the tokens of a GPU, and so is the memory alive at each moment;
- sharded memory is affine in 1 / GPUs, for any number of tokens;
- decoder layers repeat, so both are affine in depth at a given moment of the first or last layers.

So ``figures`` runs short stacks with two numbers of tokens and, if sharded, two numbers of GPUs, matches their moments
one by one, and extrapolates each to the full depth. A violation of these properties raises ``TraceError``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from autoconf.memory.envelope import undominated
from autoconf.memory.optimizers import optimizer_bytes
from autoconf.pipeline.tracing.first_rank import Load, first_rank, load_at_once
from autoconf.pipeline.tracing.model_setup import TrainingSetup, trainable_shapes
from autoconf.pipeline.tracing.recorder import EMBEDDING, SAMPLES, Part, Recorder, TraceError, parts
from autoconf.pipeline.validation.rank_figures import RankFigures

HEAD = -1  # segment of ops outside the decoder layers
TAIL = -2  # segment of ops after the backward pass of the first decoder layer: the embeddings' gradient, reductions
# Depths of short stacks. Sharded ones have two layers at each end, because FSDP prefetches an existing neighbor.
DEPTHS = {False: (2, 4), True: (4, 6)}
TOKENS = (2039, 4093)  # tokens per sample; primes, so that a dimension of this size is always the tokens
GPUS = (2, 4)


@dataclass(frozen=True)
class LiveBytes:
    """Memory alive at each allocation of a micro-batch, and at its end; arrays have shape (allocations,)."""

    segments: np.ndarray
    live_bytes: np.ndarray
    ops: list[str]
    end_bytes: int

    @property
    def peak_bytes(self) -> int:
        return int(self.live_bytes.max())


def _segment(part: Part) -> int:
    return part.layer if part.segment == "layer" else TAIL if part.segment == "tail" else HEAD


def run(
    job: TrainingSetup, *, layers: int | None, tokens: int, real: bool = False, load: Load = load_at_once
) -> LiveBytes:
    """Trace one micro-batch of ``SAMPLES`` samples; with accumulation, a middle and the last one of an update.

    A first, unrecorded update creates the memory that a job on several GPUs keeps between updates.

    Args:
        job: the training setup.
        layers: depth of a short stack; ``None`` for the whole model.
        tokens: tokens of each sample.
        real: use real tensors on the CPU, to check fake ones; a job on several GPUs then needs a process group that
            the caller's process has joined.
        load: makes the tensors of a model, and shards it.
    """
    accumulating = job.stack.gradient_accumulation
    whole = accumulating and job.stack.gradient_sync == "last"  # gradients, until the last micro-batch
    with first_rank(job, layers, real=real, load=load) as rank:
        recorder = Recorder(tokens)
        for tensor in rank.resident():
            recorder.see(tensor)
        if accumulating and job.gpus == 1:
            for parameter in rank.trainable:
                parameter.grad = torch.empty_like(parameter)
                recorder.see(parameter.grad)
        with recorder, recorder.resizes(), parts(rank.layers, recorder):
            if job.gpus > 1:
                rank.micro_batch(SAMPLES, tokens, reduce=not whole)
                if not accumulating:
                    rank.model.zero_grad()
            recorder.changes.clear()
            recorder.part = EMBEDDING
            rank.micro_batch(SAMPLES, tokens, reduce=job.gpus > 1 and not whole)
            if accumulating and job.gpus > 1:
                recorder.part = EMBEDDING
                rank.micro_batch(SAMPLES, tokens, reduce=True)
            allocations, end = [change for change in recorder.changes if change.nbytes > 0], recorder.live
    return LiveBytes(
        segments=np.array([_segment(change.part) for change in allocations]),
        live_bytes=np.array([change.live for change in allocations], float),
        ops=[change.op for change in allocations],
        end_bytes=end,
    )


def _at_the_ends(trace: LiveBytes, layers: int, kept: int) -> LiveBytes:
    """Keep the moments of the first and last ``kept`` layers and outside of layers; renumber the layers."""
    first, last = np.arange(kept), np.arange(layers - kept, layers)
    keep = np.isin(trace.segments, [HEAD, TAIL, *first, *last])
    segments = np.where(trace.segments >= layers - kept, trace.segments - layers + 2 * kept, trace.segments)
    ops = [op for op, here in zip(trace.ops, keep, strict=True) if here]
    return LiveBytes(segments[keep], trace.live_bytes[keep], ops, trace.end_bytes)


def figures(job: TrainingSetup) -> RankFigures:
    """Trace the memory of a job as a function of tokens and GPUs; only whether there are several GPUs matters.

    Raises:
        TraceError: the traced program is not affine in tokens, depth or 1 / GPUs (it never is for layers of several
            kinds), or it creates a tensor of tokens x tokens.

    >>> from autoconf.pipeline.catalog import architectures
    >>> from autoconf.jobs.stack import Stack
    >>> held = figures(TrainingSetup(architectures()["santacoder-1.1b"], "full", Stack(optim="adamw_torch_fused")))
    >>> f"{held.peak_bytes(tokens=8192, gpus=1) / 2**30:.1f} GiB"
    '13.7 GiB'
    """
    coefficients = _coefficients(job)
    moments = np.round(coefficients[:-1], 3)  # whole bytes except for rounding; bytes per token may be fractional
    optimizer = optimizer_bytes(job.stack.optim, trainable_shapes(job))
    return RankFigures(
        moments=tuple(_moment(terms) for terms in moments[undominated(moments, decimals=3)]),
        end=_moment(coefficients[-1]),
        states=optimizer.states,
        step=optimizer.step,
        shards_states=job.shards and job.stack.shard_adapters,
    )


def _moment(terms: np.ndarray) -> tuple[float, float, float]:
    constant, per_token, sharded = map(float, terms)
    return constant, per_token, sharded


def _coefficients(job: TrainingSetup) -> np.ndarray:
    """Constant bytes, bytes per token and sharded bytes of each moment and of the end; shape (moments + 1, 3)."""
    several = job.gpus > 1
    kinds = dict.fromkeys(job.architecture.kinds)
    if len(kinds) > 1:
        # Short stacks have the first layers, so they would have fewer kinds of layers, or other proportions.
        raise TraceError(f"{job.architecture.name}: kinds of layers ({', '.join(kinds)}) are not affine in depth")
    corners = (
        [(TOKENS[0], GPUS[0]), (TOKENS[1], GPUS[0]), (TOKENS[0], GPUS[1])] if several else [(t, 1) for t in TOKENS]
    )
    depths = DEPTHS[several]
    kept = depths[0] // 2
    runs = {
        (layers, tokens, gpus): _at_the_ends(run(replace(job, gpus=gpus), layers=layers, tokens=tokens), layers, kept)
        for layers in depths
        for tokens, gpus in corners
    }
    first = next(iter(runs.values()))
    for (layers, tokens, gpus), other in runs.items():
        if other.ops != first.ops or not np.array_equal(other.segments, first.segments):
            raise TraceError(f"{job.architecture.name}: {layers} layers, {tokens} tokens and {gpus} GPUs run other ops")

    def deepened(tokens: int, gpus: int) -> np.ndarray:
        shallow, deep = (
            np.append(runs[layers, tokens, gpus].live_bytes, runs[layers, tokens, gpus].end_bytes) for layers in depths
        )
        return shallow + (deep - shallow) / (depths[1] - depths[0]) * (job.architecture.layers - depths[0])

    base, more_tokens, *more_gpus = (deepened(*corner) for corner in corners)
    per_token = (more_tokens - base) / (SAMPLES * (TOKENS[1] - TOKENS[0]))
    sharded = (base - more_gpus[0]) / (1 / GPUS[0] - 1 / GPUS[1]) if several else np.zeros_like(base)
    constant = base - per_token * SAMPLES * TOKENS[0] - sharded / corners[0][1]
    return np.stack([constant, per_token, sharded], axis=1)
