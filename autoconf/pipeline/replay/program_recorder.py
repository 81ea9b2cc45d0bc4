"""Record a running program's allocations and releases on the GPU as events of a replay."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from autoconf.memory.loading import LOADING
from autoconf.memory.replay import Action, Event, Place, Program
from autoconf.pipeline.tracing.recorder import Part, Recorder


class ProgramRecorder(Recorder):
    """Log every allocation and release as an event, with stream and place.

    Args:
        workspace: bytes that cuBLAS requests from PyTorch's allocator at the first matrix product of a thread.
    """

    def __init__(self, workspace: int) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.when = LOADING
        self._places: dict[Place, int] = {}
        self._blocks: dict[int, int] = {}  # the current block of a storage
        self._blocks_made = 0
        self._paused = False
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

    def see(self, tensor: torch.Tensor, op: str = "resident") -> None:
        """Log the storage of a tensor on the GPU, if it is new."""
        if tensor.device.type != "meta" and not self._paused:
            super().see(tensor, op)

    def in_host_memory(self, tensor: torch.Tensor) -> None:
        """Treat a new tensor as one in the CPU's memory, which occupies nothing on the GPU."""
        storage = tensor.untyped_storage()
        if storage not in self._numbers:
            self._numbers[storage] = len(self._sizes)
            self._host.add(len(self._sizes))
            self._sizes.append(0)

    def new_in_host_memory(self, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Make a tensor of zeros in the CPU's memory, as large as another one."""
        with self.paused():
            made = torch.zeros_like(like, dtype=dtype)
        self.in_host_memory(made)
        return made

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Log nothing of what happens inside."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    @contextmanager
    def inside(self, part: str, module: str = "") -> Iterator[None]:
        """Name the part of the program, and the module, of what is allocated from here on."""
        before, self.part = self.part, Part(part)
        self._modules.append(module)
        try:
            yield
        finally:
            self.part = before
            self._modules.pop()

    def name_module(self, module: str) -> None:
        """Name the module of what is allocated from here on."""
        self._modules[-1] = module

    def allocate_for_a_moment(self, nbytes: int, op: str) -> None:
        """Log a block that is freed at once."""
        if nbytes:
            self.events.append(Event(Action.FREE, self._allocate(nbytes, op)))

    def empty_cache(self) -> None:
        """Log a call of ``torch.cuda.empty_cache``."""
        self.events.append(Event(Action.EMPTY_CACHE, -1))

    def _resize(self, number: int, nbytes: int, op: str, itemsize: int = 1) -> None:
        if number in self._host:
            return
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

    >>> _part_name(Part("layer", 3, backward=True)), _part_name(Part("embedding"))
    ('layer 3 backward', 'embedding')
    """
    where = f"layer {part.layer}" if part.segment == "layer" else part.segment
    return f"{where} backward" if part.backward else where
