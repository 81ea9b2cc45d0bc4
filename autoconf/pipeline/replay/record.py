"""Record the allocations of a fine-tuning job on one GPU, at full depth and in the order of the training code.

The real code runs on fake tensors, as for peaks: loading the model, then some updates with accumulation, clipping and
PyTorch's own optimizer, of which the first creates the states. In addition to sizes, the order is recorded: every
allocation and release, the current stream, and the module and the op.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from autoconf.memory.replay import Action, Event, Place, Program
from autoconf.pipeline.tracing.first_rank import first_rank
from autoconf.pipeline.tracing.model_setup import Rank, TrainingSetup
from autoconf.pipeline.tracing.recorder import EMBEDDING, LOSS, Part, Recorder, TraceError, parts

UPDATES = (
    3  # the first creates the optimizer's states, the second uses them, the third starts with the cache of the second
)
# aten/src/ATen/cuda/CUDAContextLight.h and CublasHandlePool.cpp, parseChosenWorkspaceSize: :4096:2:16:8 KiB, and 32 MiB
# on GPUs of compute capability 9; one for the main thread and one for autograd's thread.
CUBLAS_WORKSPACE = {8: (2 * 4096 + 8 * 16) * 1024, 9: 32 * 2**20}


@dataclass(frozen=True)
class Batches:
    """The batches of each GPU.

    Args:
        samples: samples of a micro-batch.
        tokens_per_sample: tokens of each sample.
        accumulation: micro-batches of an update.

    >>> Batches(samples=4, tokens_per_sample=4096).tokens
    16384
    """

    samples: int
    tokens_per_sample: int
    accumulation: int = 1

    @property
    def tokens(self) -> int:
        return self.samples * self.tokens_per_sample


class ProgramRecorder(Recorder):
    """Log every allocation and release as an event, with stream and place.

    Args:
        workspace: bytes that cuBLAS requests from PyTorch's allocator at the first matrix product of a thread.
    """

    def __init__(self, workspace: int) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.when = "loading"
        self._places: dict[Place, int] = {}
        self._blocks: dict[int, int] = {}  # the current block of a storage
        self._blocks_made = 0
        self._streams: dict[int, int] = {}
        self._marks: dict[int, int] = {}  # of events
        self._mark_count = 0
        self._kept: list[Any] = []  # streams and events, so that no two have one id
        self._modules: list[str] = []
        self._workspace = workspace
        self._threads_with_workspace: set[bool] = set()

    @property
    def program(self) -> Program:
        return Program(tuple(self.events), tuple(self._places))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if name.startswith(_PRODUCTS) and self.part.backward not in self._threads_with_workspace:
            self._threads_with_workspace.add(self.part.backward)
            self._allocate(self._workspace, "cuBLAS workspace")
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _resize(self, number: int, nbytes: int, op: str, itemsize: int = 1) -> None:
        before = self._sizes[number]
        super()._resize(number, nbytes, op, itemsize)
        if nbytes == before:
            return
        block = self._blocks.pop(number, None)
        if nbytes:  # at::native::resize_bytes_cuda allocates the new block before it releases the old one
            self._blocks[number] = self._allocate(nbytes, op)
        if block is not None:
            self.events.append(Event(Action.FREE, block))

    def _allocate(self, nbytes: int, op: str) -> int:
        block = self._blocks_made
        self._blocks_made += 1
        self.events.append(Event(Action.ALLOCATE, block, nbytes, self._stream(), self._place(op)))
        return block

    def _stream(self, stream: Any = None) -> int:
        # FSDP switches streams of the device of its parameters, here the CPU, where they do nothing.
        stream = stream or torch.cpu.current_stream()
        return self._number(self._streams, stream)

    def _number(self, numbers: dict[int, int], what: Any) -> int:
        if id(what) not in numbers:
            self._kept.append(what)
            numbers[id(what)] = len(numbers)
        return numbers[id(what)]

    def wait_for_all(self) -> None:
        """Record that the program waits for the GPU, for example when it reads a loss."""
        self.events += [Event(Action.SYNCHRONIZE, -1, stream=stream) for stream in self._streams.values()]

    @contextmanager
    def streams(self) -> Iterator[None]:
        """Follow FSDP1's use of streams, and its waits for the GPU.

        A wait for an event counts as a wait for all streams, as if all had reached the position of the event.
        """

        def used(tensor: torch.Tensor, stream: Any) -> None:
            number = self._numbers.get(getattr(tensor, "_local_tensor", tensor).untyped_storage())
            if number is not None and number in self._blocks:
                self.events.append(Event(Action.RECORD_STREAM, self._blocks[number], stream=self._stream(stream)))

        def marked(event: Any, _: Any = None) -> None:
            self._marks.pop(id(event), None)
            self._mark_count += 1
            self._marks[id(event)] = self._mark_count
            self._kept.append(event)
            self.events.append(Event(Action.MARK, self._mark_count))

        def waited(event: Any) -> None:
            if id(event) in self._marks:
                self.events.append(Event(Action.WAIT, self._marks[id(event)]))

        with ExitStack() as patches:
            for module in ("_flat_param", "_runtime_utils"):
                patches.enter_context(mock.patch(f"torch.distributed.fsdp.{module}._no_dispatch_record_stream", used))
            patches.enter_context(mock.patch.object(torch.cpu.Event, "record", marked))
            patches.enter_context(mock.patch.object(torch.cpu.Event, "synchronize", waited))
            yield

    def _place(self, op: str) -> int:
        part, module = self.part, self._modules[-1] if self._modules else ""
        place = Place(self.when, _part_name(part), module, op)
        return self._places.setdefault(place, len(self._places))

    @contextmanager
    def modules_of(self, model: nn.Module) -> Iterator[None]:
        """Follow the module of a model that runs its forward pass."""
        names = {id(module): name for name, module in model.named_modules()}

        def begins(module: nn.Module, _: Any) -> None:
            self._modules.append(names.get(id(module), type(module).__name__))

        def ends(module: nn.Module, _: Any, __: Any) -> None:
            if self._modules:
                self._modules.pop()

        handles = [register_module_forward_pre_hook(begins), register_module_forward_hook(ends, always_call=True)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


_PRODUCTS = ("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm")


def _part_name(part: Part) -> str:
    """The name of a part in messages.

    >>> _part_name(Part("layer", 3, backward=True)), _part_name(EMBEDDING)
    ('layer 3 backward', 'embedding')
    """
    where = f"layer {part.layer}" if part.segment == "layer" else part.segment
    return f"{where} backward" if part.backward else where


def record(
    job: TrainingSetup,
    batches: Batches,
    *,
    updates: int = UPDATES,
    layers: int | None = None,
    compute_capability: int = 8,
    report: Callable[[str], None] = lambda _: None,
) -> Program:
    """Record the allocations and releases of a job on its first GPU.

    Args:
        job: the training setup.
        batches: the batches of each GPU.
        updates: number of optimizer steps.
        layers: depth of a short model; ``None`` for the whole model.
        compute_capability: major compute capability of the GPU: 8 for an A100 or L40S, 9 for an H100.
        report: a function that is called with progress messages.

    Raises:
        TraceError: the job cannot be recorded: an optimizer that is not PyTorch's own, or DDP on several GPUs.
    """
    check_recordable(job)
    report("building the model")
    recorder = ProgramRecorder(CUBLAS_WORKSPACE[compute_capability])
    with (
        first_rank(job, layers) as rank,
        mock.patch("torch.optim.adam._get_value", lambda _: 1.0),  # the step count, which fake tensors do not have
    ):
        for tensor in _as_loaded(rank):
            recorder.see(tensor)
        optimizer = _optimizer(job, rank)
        with (
            recorder,
            recorder.resizes(),
            recorder.streams(),
            parts(rank.layers, recorder),
            recorder.modules_of(rank.model),
        ):
            for update in range(updates):
                report(f"step {update + 1} of {updates}")
                recorder.when = f"step {update + 1}"
                _update(rank, optimizer, batches, recorder)
            return recorder.program


def check_recordable(job: TrainingSetup) -> None:
    """Check that a job can be recorded.

    Raises:
        TraceError: it cannot.
    """
    if job.stack.optim not in _OPTIMIZERS:
        raise TraceError(
            f"optim {job.stack.optim!r} cannot be replayed: PyTorch's allocator does not hold all its states; "
            f"these can be: {', '.join(_OPTIMIZERS)}"
        )
    if job.gpus > 1 and not job.shards:
        raise TraceError(
            f"sharding {job.stack.sharding!r} on several GPUs cannot be replayed: DDP does not run on fake tensors; "
            "fsdp1, fsdp2 and one GPU can be"
        )


def _as_loaded(rank: Rank) -> list[torch.Tensor]:
    """Parameters and buffers in the order in which they are moved to the GPU.

    torch/nn/modules/module.py, Module._apply: children first, then a module's own.
    """
    if rank.job.gpus > 1:
        return rank.resident()
    found: dict[int, torch.Tensor] = {}

    def visit(module: nn.Module) -> None:
        for child in module.children():
            visit(child)
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            found.setdefault(id(tensor), tensor)

    visit(rank.model)
    return [*found.values(), *(t for t in rank.resident() if id(t) not in found)]


# Optimizer and clipping run on all parameters at once, which is PyTorch's default on CUDA for plain and for distributed
# tensors: torch/optim/optimizer.py, _default_to_fused_or_foreach; torch/utils/_foreach_utils.py, _has_foreach_support;
# torch/distributed/tensor/__init__.py, which adds DTensor to the types of both. Fake tensors are of neither type.
_FOREACH = True


def _adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, foreach=_FOREACH)


def _adamw_fused(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, fused=True)


def _sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-3, foreach=_FOREACH)


_OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "adamw_torch": _adamw,
    "adamw_torch_fused": _adamw_fused,
    "sgd": _sgd,
}


def _optimizer(job: TrainingSetup, rank: Rank) -> torch.optim.Optimizer:
    return _OPTIMIZERS[job.stack.optim](rank.trainable)


def _update(rank: Rank, optimizer: torch.optim.Optimizer, batches: Batches, recorder: ProgramRecorder) -> None:
    """Run one update like transformers' Trainer (transformers/trainer.py, Trainer._run_epoch)."""
    recorder.part = EMBEDDING
    inputs = [
        _batch(batches) for _ in range(batches.accumulation)
    ]  # all batches are fetched before the first one is used
    for index, batch in enumerate(inputs):
        recorder.part = EMBEDDING
        with rank.gradient_sync(reduce=index + 1 == batches.accumulation):
            loss = rank.model(input_ids=batch["input_ids"], labels=batch["labels"])["loss"]
            recorder.part = LOSS
            loss.backward()
        recorder.wait_for_all()  # Trainer._run_epoch checks whether the loss is a number
        del loss
    recorder.part = Part("clipping")
    norm = _clip(rank)
    recorder.part = Part("optimizer")
    optimizer.step()
    del norm
    rank.model.zero_grad()


def _clip(rank: Rank) -> torch.Tensor:
    # accelerate/accelerator.py, clip_grad_norm_: FSDP1 has its own.
    if isinstance(rank.model, FullyShardedDataParallel):
        return rank.model.clip_grad_norm_(1.0)
    return nn.utils.clip_grad_norm_(rank.trainable, 1.0, foreach=_FOREACH)


def _batch(batches: Batches) -> dict[str, torch.Tensor]:
    ids = torch.zeros((batches.samples, batches.tokens_per_sample), dtype=torch.long)
    return {"input_ids": ids, "labels": torch.zeros_like(ids), "attention_mask": torch.ones_like(ids)}
