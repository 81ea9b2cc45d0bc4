"""Peak memory of one GPU's part of a fine-tuning job, op by op, on fake tensors.

The real code runs under ``FakeTensorMode``, modeling, adapters, autograd and FSDP's wrappers alike: every op reports
the storages that it would create, and nothing is allocated. Three facts turn a few short traces into an exact answer
for every job:

- every storage's size is affine in the tokens of a GPU, and so is what is alive at each moment of a micro-batch;
- what FSDP shards is affine in 1 / GPUs, whatever the tokens;
- decoder layers repeat, so both are affine in depth at a given moment of the first or last layers.

Hence ``figures`` runs short stacks at two token counts and, sharded, on two numbers of GPUs, matches their moments one
by one, and extrapolates each to the full depth. Anything that breaks these assumptions raises ``TraceError``.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from autoconf.memory.optimizers import optimizer_bytes
from autoconf.pipeline.kernels import cuda as cuda_kernels
from autoconf.pipeline.kernels import triton as triton_kernels
from autoconf.pipeline.tracing.model_setup import Job, Rank, build_model, materialize, rank_of, trainable_shapes
from autoconf.pipeline.validation.rank_figures import RankFigures

HEAD = -1  # segment of ops outside the decoder layers
TAIL = -2  # segment of ops after the backward pass of the first decoder layer: the embeddings' gradient, reductions
# Depths of short stacks. Sharded ones keep two layers at each end: there FSDP has a neighbour to prefetch, or not.
DEPTHS = {False: (2, 4), True: (4, 6)}
SAMPLES = 2  # a single sample would make some copies unnecessary
TOKENS = (2039, 4093)  # per sample; primes, so that a dimension of this size can only mean "tokens"
GPUS = (2, 4)
RANKS = (8, 16)  # of adapters


class TraceError(RuntimeError):
    """The traced program broke an assumption that its extrapolation rests on."""


class _Recorder(TorchDispatchMode):
    """Counts the bytes of all storages that ops create or resize, from creation to release."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.segment = HEAD
        self.moments: list[tuple[int, int, str]] = []  # (segment, bytes alive, op)
        self.live = 0
        self._known: weakref.WeakKeyDictionary[Any, list[int]] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_iter(out):
            if isinstance(leaf, torch.Tensor):
                self.see(leaf, str(func))
        return out

    def see(self, tensor: torch.Tensor, op: str) -> None:
        """Take note of a tensor's storage, if it is new."""
        tensor = getattr(tensor, "_local_tensor", tensor)  # of a DTensor
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        if sum(size == self.tokens for size in tensor.shape) > 1:
            raise TraceError(f"{op} holds a tensor of tokens x tokens: {tuple(tensor.shape)}")
        size = [storage.nbytes()]  # shared with the finalizer, which sees no storage any more
        self._known[storage] = size
        self._add(size[0], op)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: list[int]) -> None:
        self.live -= size[0]

    def _add(self, nbytes: int, op: str) -> None:
        self.live += nbytes
        if nbytes > 0:
            self.moments.append((self.segment, self.live, op))

    @contextmanager
    def resizes(self) -> Iterator[None]:
        """Follow storages whose size changes in place, as those of gathered parameters do under FSDP."""
        resize = torch.UntypedStorage.resize_

        def followed(storage: Any, nbytes: int) -> Any:
            result = resize(storage, nbytes)
            if storage in self._known:
                size = self._known[storage]
                grown, size[0] = nbytes - size[0], nbytes
                self._add(grown, "resize_")
            return result

        with mock.patch.object(torch.UntypedStorage, "resize_", followed):
            yield


@dataclass(frozen=True)
class Trace:
    """What was alive at each allocation of a micro-batch, and at its end; arrays have shape (allocations,)."""

    segments: np.ndarray
    live_bytes: np.ndarray
    ops: list[str]
    end_bytes: int

    @property
    def peak_bytes(self) -> int:
        return int(self.live_bytes.max())


@contextmanager
def _segments(layers: torch.nn.ModuleList, recorder: _Recorder) -> Iterator[None]:
    """Tell the recorder which decoder layer is running, forward, recomputed or backward."""
    handles = []

    def switch(segment: int, *_: Any) -> None:
        recorder.segment = segment

    def finish(_: torch.Tensor) -> None:
        recorder.segment = TAIL

    def watch_input(_: torch.nn.Module, args: tuple[Any, ...]) -> None:
        if args and args[0].requires_grad:
            args[0].register_hook(finish)

    for index, layer in enumerate(layers):

        def enter(*_: Any, index: int = index) -> None:
            switch(index)

        def watch_output(_: torch.nn.Module, args: Any, output: Any, index: int = index) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            if hidden.requires_grad:
                hidden.register_hook(lambda _: switch(index))

        # A checkpoint may recompute a layer's forward and not its __call__, so the submodules carry the hook.
        handles += [module.register_forward_pre_hook(enter) for module in layer.modules()]
        handles.append(layer.register_forward_hook(watch_output))
    handles.append(layers[-1].register_forward_hook(lambda *_: switch(HEAD)))
    handles.append(layers[0].register_forward_pre_hook(watch_input))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run(job: Job, *, layers: int | None, tokens: int, real: bool = False) -> Trace:
    """Trace one micro-batch of ``SAMPLES`` samples; under accumulation a middle and the last one of an update.

    What a job on several GPUs holds from one update to the next is there from a first, unrecorded one.

    Args:
        job: what to train, how, and on how many GPUs.
        layers: depth of a shortened stack; ``None`` for the whole one.
        tokens: of each sample.
        real: with real tensors on the CPU, the check on fake ones; a job on several GPUs then needs a process group,
            which the caller's process has joined.
    """
    model = build_model(job, layers)
    accumulating = job.stack.gradient_accumulation
    with (
        rank_of(job) as mesh,
        nullcontext() if real else FakeTensorMode(),
        cuda_kernels.on_cuda(model, job.architecture.experts),
        triton_kernels.in_place_of_plain_ops(model, job.stack),
    ):
        materialize(model)
        rank = Rank(job, model, mesh)
        recorder = _Recorder(tokens)
        for tensor in rank.resident():
            recorder.see(tensor, "resident")
        if accumulating and job.gpus == 1:
            for parameter in rank.trainable:
                parameter.grad = torch.empty_like(parameter)
                recorder.see(parameter.grad, "resident")
        with recorder, recorder.resizes(), _segments(rank.layers, recorder):
            if job.gpus > 1:
                rank.micro_batch(SAMPLES, tokens, reduce=not accumulating)
                if not accumulating:
                    rank.model.zero_grad()
            recorder.segment = HEAD
            recorder.moments.clear()
            rank.micro_batch(SAMPLES, tokens, reduce=job.gpus > 1 and not accumulating)
            if accumulating and job.gpus > 1:
                recorder.segment = HEAD
                rank.micro_batch(SAMPLES, tokens, reduce=True)
            moments, end = list(recorder.moments), recorder.live
    segments, live, ops = zip(*moments, strict=True)
    return Trace(np.array(segments), np.array(live, float), list(ops), end)


def _at_the_ends(trace: Trace, layers: int, kept: int) -> Trace:
    """Keep the moments of the first and last ``kept`` layers and of what is outside; number the layers anew."""
    first, last = np.arange(kept), np.arange(layers - kept, layers)
    keep = np.isin(trace.segments, [HEAD, TAIL, *first, *last])
    segments = np.where(trace.segments >= layers - kept, trace.segments - layers + 2 * kept, trace.segments)
    ops = [op for op, here in zip(trace.ops, keep, strict=True) if here]
    return Trace(segments[keep], trace.live_bytes[keep], ops, trace.end_bytes)


def figures(job: Job) -> RankFigures:
    """Everything that the closed form needs to know of a job; of its number of GPUs only whether there are several.

    Raises:
        TraceError: the traced program is not affine in tokens, depth or 1 / GPUs, which it never is where layers are of
            several kinds, or it holds a tensor of tokens x tokens.

    >>> from autoconf.pipeline.catalog import architectures
    >>> from autoconf.jobs.stack import Stack
    >>> held = figures(Job(architectures()["santacoder-1.1b"], "full", Stack(optim="adamw_torch_fused")))
    >>> f"{held.peak_bytes(tokens=8192, gpus=1) / 2**30:.1f} GiB"
    '13.7 GiB'
    """
    return _figures(job, _coefficients(job))


def figures_of_ranks(job: Job, ranks: Sequence[int]) -> dict[int, RankFigures]:
    """Figures of a LoRA job for any ranks, from traces of two: bytes are affine in the rank of adapters.

    Args:
        job: a job of method ``lora`` or ``qlora``; its stack's own rank does not matter.
        ranks: the ranks to give figures for, each >= 1.

    Raises:
        TraceError: as ``figures``, or the two ranks run other ops.
    """
    low, high = (_coefficients(_with_rank(job, rank)) for rank in RANKS)
    if low.shape != high.shape:
        raise TraceError(f"{job.architecture.name}: ranks {RANKS[0]} and {RANKS[1]} run other ops")
    per_rank = (high - low) / (RANKS[1] - RANKS[0])
    return {rank: _figures(_with_rank(job, rank), low + per_rank * (rank - RANKS[0])) for rank in ranks}


def _with_rank(job: Job, rank: int) -> Job:
    return replace(job, stack=job.stack.model_copy(update={"lora_r": rank}))


def _figures(job: Job, coefficients: np.ndarray) -> RankFigures:
    optimizer = optimizer_bytes(job.stack.optim, trainable_shapes(job))
    return RankFigures(
        moments=_envelope(coefficients[:-1]),
        end=_moment(coefficients[-1]),
        states=optimizer.states,
        step=optimizer.step,
        shards_states=job.shards and job.stack.shard_adapters,
    )


def _moment(terms: np.ndarray) -> tuple[float, float, float]:
    constant, per_token, sharded = map(float, terms)
    return constant, per_token, sharded


def _coefficients(job: Job) -> np.ndarray:
    """Bytes that stay, per token and sharded, of each moment and of the end; shape (moments + 1, 3)."""
    several = job.gpus > 1
    kinds = dict.fromkeys(job.architecture.kinds)
    if len(kinds) > 1:
        # Short stacks take the first layers, so they would have fewer kinds than the model, or other shares of them.
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


def _envelope(moments: np.ndarray) -> tuple[tuple[float, float, float], ...]:
    """Drop the moments that another one exceeds in every term."""
    # Terms are whole numbers of bytes but for rounding; bytes per token may have a fraction.
    unique = np.unique(np.round(moments, 3), axis=0)
    dominated = [any((unique >= row).all(1) & (unique > row).any(1)) for row in unique]
    return tuple(_moment(row) for row, drop in zip(unique, dominated, strict=True) if not drop)
