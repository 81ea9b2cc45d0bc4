"""What a micro-batch holds on one GPU, storage by storage: when each was created and released, by which part of the
model, and how its size depends on the tokens and on the rank of adapters.

One short run under ``FakeTensorMode`` tells all of it. Tokens and rank are primes that divide no dimension of the
model, so a storage whose elements are a multiple of the prime has that dimension, and no second run is needed to find
out.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from autoconf.jobs.stack import Stack
from autoconf.pipeline.catalog import Architecture
from autoconf.pipeline.kernels import cuda as cuda_kernels
from autoconf.pipeline.kernels import triton as triton_kernels
from autoconf.pipeline.tracing.model_setup import Job, Rank, build_model, materialize

SAMPLES = 2  # a single sample would make some copies unnecessary
# Tokens of a sample: a prime; half of what losses leave of it, (TOKENS - 1) / 2, is one as well.
TOKENS = 2039
_SHIFTED = 1019
_RANKS = (29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71)


class TraceError(RuntimeError):
    """The traced program broke an assumption that its figures rest on."""


class Part(NamedTuple):
    """A part of a micro-batch: which segment of the model runs, and whether backward.

    Segments are ``embedding``, ``layer``, ``head`` and ``tail`` (after the backward pass of the first layer).
    """

    segment: str
    layer: int = -1
    backward: bool = False
    late: bool = False  # after the layer's first adapter began its backward pass


EMBEDDING, HEAD, LOSS, TAIL = Part("embedding"), Part("head"), Part("head", backward=True), Part("tail", backward=True)


class Size(NamedTuple):
    """Bytes of a storage: ``constant + per_token * tokens``, both also per rank of adapters."""

    constant: float = 0.0
    per_token: float = 0.0
    constant_per_rank: float = 0.0
    per_token_per_rank: float = 0.0


@dataclass(frozen=True)
class Storages:
    """All storages of a micro-batch; arrays have shape (storages,), ``sizes`` (storages, 4).

    Storage i was created at moment ``born[i]`` and is gone at moment ``dead[i]``. Parameters and buffers are not among
    them.
    """

    born: np.ndarray
    dead: np.ndarray
    sizes: np.ndarray
    gradient_of: np.ndarray  # layer whose parameter it is the gradient of; -1 of the rest of the model, -2 none
    parts: list[Part]  # of each moment
    ops: list[str]


class _Recorder(TorchDispatchMode):
    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.part = EMBEDDING
        self.parts: list[Part] = []
        self.ops: list[str] = []
        self.sizes: list[Size] = []
        self.dead: dict[int, int] = {}
        self.known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_iter(out):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf, func)
        return out

    def _see(self, tensor: torch.Tensor, func: Any) -> None:
        storage = tensor.untyped_storage()
        if storage in self.known or not storage.nbytes():
            return
        if sum(size == TOKENS for size in tensor.shape) > 1:
            raise TraceError(f"{func} holds a tensor of tokens x tokens: {tuple(tensor.shape)}")
        moment = len(self.sizes)
        self.known[storage] = moment
        self.sizes.append(_size(storage.nbytes(), tensor.itemsize, self.rank))
        self.parts.append(self.part)
        self.ops.append(str(func))
        weakref.finalize(storage, self._release, moment)

    def _release(self, moment: int) -> None:
        self.dead[moment] = len(self.sizes)


def _size(nbytes: int, itemsize: int, rank: int) -> Size:
    """Tell from the prime factors of a storage's elements which dimensions it has."""
    elements = nbytes // itemsize
    tokens = SAMPLES * TOKENS
    if elements % TOKENS == 0:
        constant, per_token = 0.0, nbytes / tokens
    elif elements % _SHIFTED == 0:  # one token fewer in each sample
        per_token = nbytes / (tokens - SAMPLES)
        constant = -per_token * SAMPLES
    else:
        constant, per_token = float(nbytes), 0.0
    if elements % rank == 0:
        return Size(0.0, 0.0, constant / rank, per_token / rank)
    return Size(constant, per_token)


def rank_for(architecture: Architecture, layers: Sequence[str]) -> int:
    """A rank of adapters that divides no dimension of a model of these layers.

    Raises:
        TraceError: there is none, or the number of tokens divides one.
    """
    model = build_model(Job(architecture, "full", Stack()), layers)
    dimensions = {size for p in model.parameters() for size in p.shape}
    if any(size % prime == 0 for size in dimensions for prime in (TOKENS, _SHIFTED)):
        raise TraceError(f"a dimension of the model is a multiple of {TOKENS} or {_SHIFTED}")
    for rank in _RANKS:
        if all(size % rank for size in dimensions):
            return rank
    raise TraceError(f"each of the ranks {_RANKS} divides a dimension of the model")


def trace(job: Job, layers: Sequence[str], rank: int) -> Storages:
    """Run one micro-batch of a short stack on one GPU, of which gradients are left.

    Args:
        job: what to train and how, on one GPU. Accumulation does not matter.
        layers: kinds of the decoder layers of the short stack.
        rank: of adapters, as ``rank_for`` gives it.

    Raises:
        TraceError: a tensor of tokens x tokens is held.
    """
    job = job.with_rank(rank)
    model = build_model(job, layers)
    with (
        FakeTensorMode(),
        cuda_kernels.on_cuda(model, job.architecture.experts),
        triton_kernels.in_place_of_plain_ops(model, job.stack),
    ):
        materialize(model)
        gpu = Rank(job, model, None)
        recorder = _Recorder(rank)
        for tensor in gpu.resident():
            recorder.known[tensor.untyped_storage()] = -1
        with recorder, _parts(gpu.layers, recorder):
            input_ids = torch.zeros((SAMPLES, TOKENS), dtype=torch.long)
            _attention_mask = torch.empty_like(input_ids)
            labels = torch.zeros_like(input_ids)
            loss = gpu.model(input_ids=input_ids, labels=labels)["loss"]
            recorder.part = LOSS
            loss.backward()
            owner = {p: index for index, layer in enumerate(gpu.layers) for p in layer.parameters()}
            gradients = {
                recorder.known[p.grad.untyped_storage()]: owner.get(p, -1) for p in gpu.trainable if p.grad is not None
            }
            dead = dict(recorder.dead)
    count = len(recorder.sizes)
    return Storages(
        born=np.arange(count),
        dead=np.array([dead.get(moment, count) for moment in range(count)]),
        sizes=np.array(recorder.sizes, float),
        gradient_of=np.array([gradients.get(moment, -2) for moment in range(count)]),
        parts=recorder.parts,
        ops=recorder.ops,
    )


@contextmanager
def _parts(layers: torch.nn.ModuleList, recorder: _Recorder) -> Iterator[None]:
    """Tell the recorder which part of the model is running."""
    handles = []

    def switch(part: Part) -> None:
        recorder.part = part

    def begins(layer: int) -> None:
        part = recorder.part
        if part.layer != layer or not part.backward:
            switch(Part("layer", layer, part.backward))

    for index, layer in enumerate(layers):
        # A checkpoint may recompute a layer's forward and not its __call__, so the submodules carry the hook.
        handles += [m.register_forward_pre_hook(lambda *_, i=index: begins(i)) for m in layer.modules()]

        def ended(_: torch.nn.Module, args: Any, output: Any, index: int = index) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            if hidden.requires_grad:
                hidden.register_hook(lambda _: switch(Part("layer", index, True)))

        handles.append(layer.register_forward_hook(ended))
        adapters = [m for name, m in layer.named_modules() if name.endswith("lora_A.default")]
        for adapter in adapters:

            def adapted(_: Any, args: Any, output: torch.Tensor, index: int = index) -> None:
                first = not recorder.part.late and index not in waiting
                if first and output.requires_grad:
                    waiting.add(index)
                    output.register_hook(lambda _: switch(Part("layer", index, True, True)))

            handles.append(adapter.register_forward_hook(adapted))
    waiting: set[int] = set()

    def head(*_: Any) -> None:
        waiting.clear()  # checkpoints call adapters anew
        if not recorder.part.backward:
            switch(HEAD)

    handles.append(layers[-1].register_forward_hook(head))

    def embedded(_: torch.nn.Module, args: tuple[Any, ...]) -> None:
        if args and args[0].requires_grad and not recorder.part.backward:
            args[0].register_hook(lambda _: switch(TAIL))

    handles.append(layers[0].register_forward_pre_hook(embedded))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
