"""Run code for a GPU and its host on a CPU, and count the tensors of each of them.

All tensors are real and on the CPU. Those of the GPU are told apart by a device of their own, ``cpu:0``: code that asks
for it, or that computes with its tensors, makes tensors of the GPU, and a copy from one to the other device is a copy.
PyTorch refuses an operation on tensors of a GPU and of its host, and so does ``TwoDevices``: a tensor that were counted
for the wrong device would end the run.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.utils.checkpoint
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter

from autoconf.pipeline.tracing.recorder import Recorder

GPU, HOST = torch.device("cpu", 0), torch.device("cpu")
_DEVICE = torch.Tensor.device.__get__
_RUN_BACKWARD = "_engine_run_backward"  # of torch.autograd
# Operations that take tensors of two devices: copies, and indices on the host.
_ACROSS = ("aten.copy_", "aten._to_copy", "aten.index")


def pinned_bytes(nbytes: int) -> int:
    """The size of a page-locked block: ATen/core/CachingHostAllocator.h, roundSize.

    >>> pinned_bytes(0), pinned_bytes(1000), pinned_bytes(1024)
    (0, 1024, 1024)
    """
    return 1 << (nbytes - 1).bit_length() if nbytes else 0


class TwoDevicesRecorder(Recorder):
    """Records the most bytes of the GPU and of the host; tensors on the device ``meta`` have none."""

    def __init__(self) -> None:
        super().__init__()
        self.making: torch.device | None = None  # the device that code asks for
        self.pins = False  # whether it asks for page-locked memory
        self.held = {GPU: 0, HOST: 0}
        self.most = {GPU: 0, HOST: 0}
        self._devices: weakref.WeakKeyDictionary[Any, torch.device] = weakref.WeakKeyDictionary()
        self._released: Counter[int] = Counter()  # page-locked blocks, by bytes
        self._inputs: torch.device = HOST
        self._device_of: list[tuple[torch.device, bool]] = []  # by number of a storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before, self._inputs = self._inputs, self._of_inputs(func, (args, kwargs))
        try:
            return super().__torch_dispatch__(func, types, args, kwargs)
        finally:
            self._inputs = before

    def _of_inputs(self, func: Any, inputs: Any) -> torch.device:
        """The device on which an operation computes."""
        tensors = [one for one in tree_iter(inputs) if isinstance(one, torch.Tensor) and one.device.type != "meta"]
        found = {self.device(one) for one in tensors if one.dim()}
        if len(found) > 1 and not str(func).startswith(_ACROSS):
            raise RuntimeError(f"{func}: tensors of two devices, {[(self.device(t), t.shape) for t in tensors]}")
        return GPU if GPU in (found or {self.device(one) for one in tensors}) else HOST

    def device(self, tensor: torch.Tensor) -> torch.device:
        """The device of a tensor."""
        return self._devices.get(tensor.untyped_storage(), HOST)

    def see(self, tensor: torch.Tensor, op: str = "resident") -> None:
        if tensor.device.type == "meta" or tensor.untyped_storage() in self._numbers:
            return
        device = self._inputs if self.making is None else self.making
        self._devices[tensor.untyped_storage()] = device
        self._device_of.append((device, self.pins))
        super().see(tensor, op)

    def _resize(self, number: int, nbytes: int, op: str, itemsize: int = 1) -> None:
        device, pinned = self._device_of[number]
        before = self._sizes[number]
        super()._resize(number, nbytes, op, itemsize)
        self.changes.clear()
        if pinned:
            self._resize_pinned(pinned_bytes(before), pinned_bytes(nbytes))
        else:
            self.held[device] += nbytes - before
        self.most[device] = max(self.most[device], self.held[device])

    def _resize_pinned(self, before: int, after: int) -> None:
        """PyTorch keeps released blocks, and uses them again for blocks of the same size."""
        self._released[before] += bool(before)
        if self._released[after]:
            self._released[after] -= 1
        else:
            self.held[HOST] += after

    def forget_peaks(self) -> None:
        """Begin to look for the peaks anew."""
        self.most = dict(self.held)

    @contextmanager
    def on(self, device: torch.device, *, pins: bool = False) -> Iterator[None]:
        """Make tensors on a device."""
        before, self.making, self.pins = (self.making, self.pins), device, pins
        try:
            yield
        finally:
            self.making, self.pins = before

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is page-locked."""
        return self._device_of[self.number(tensor)][1]

    def pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        """A page-locked copy of a tensor of the host."""
        if self.device(tensor) != HOST:
            raise RuntimeError("only tensors of the host can be page-locked")
        with self.on(HOST, pins=True):
            return tensor.detach().clone()


class TwoDevices(TorchFunctionMode):
    """Gives functions of PyTorch the device ``cpu:0``.

    Args:
        recorder: counts the tensors.
    """

    def __init__(self, recorder: TwoDevicesRecorder) -> None:
        super().__init__()
        self.recorder = recorder

    @contextmanager
    def on(self) -> Iterator[None]:
        """Also give devices to the hooks of a backward pass, which would run inside of a function of PyTorch."""
        run = getattr(torch.autograd, _RUN_BACKWARD)

        def followed(*args: Any, **kwargs: Any) -> Any:
            with self:
                return run(*args, **kwargs)

        # A checkpoint compares devices of tensors that it saves inside and outside of functions of PyTorch.
        compared = {"default": lambda tensor: {"shape": tensor.shape, "dtype": tensor.dtype}}
        with (
            self,
            mock.patch.object(torch.autograd, _RUN_BACKWARD, followed),
            mock.patch.dict("torch.utils.checkpoint._allowed_determinism_checks_to_fns", compared),
        ):
            yield

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == _DEVICE:
            return self._device(args[0])
        if func is torch.Tensor.cpu:
            func, args = torch.Tensor.to, (args[0], HOST)
        if func is torch.Tensor.to:
            return self._to(args, kwargs)
        if kwargs.get("device") is None or torch.device(kwargs["device"]).type == "meta":
            return func(*args, **kwargs)
        with self.recorder.on(torch.device(kwargs["device"])):
            return func(*args, **kwargs | {"device": HOST})

    def _device(self, tensor: torch.Tensor) -> torch.device:
        return tensor.device if tensor.device.type == "meta" else self.recorder.device(tensor)

    def _to(self, args: Any, kwargs: dict[str, Any]) -> torch.Tensor:
        tensor, *rest = args
        target = self._device(tensor)
        given = dict(kwargs)
        for index, value in enumerate(rest):
            if isinstance(value, torch.Tensor):
                target, given["dtype"] = self._device(value), value.dtype
            elif isinstance(value, torch.dtype):
                given["dtype"] = value
            elif isinstance(value, str | torch.device) or index == 0:
                given["device"] = value
        if given.get("device") is not None:
            target = torch.device(given["device"])
        given = {name: value for name, value in given.items() if name in ("dtype", "copy")}
        if target.type == "meta":
            return tensor.to(target, **given)
        if target == self.recorder.device(tensor):
            return tensor.to(**given) if given else tensor
        with self.recorder.on(target):
            return tensor.to(HOST, **given | {"copy": True})
