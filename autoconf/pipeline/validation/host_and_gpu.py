"""Tell apart what is on the host and what is on the GPU where all tensors are real tensors on the CPU.

DeepSpeed's processes run on a machine without GPUs. A function mode plays a GPU: code that asks for the device
``cuda:0`` gets a tensor on the CPU that counts as one of the GPU, and moving a tensor between the two makes a copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter

from autoconf.pipeline.tracing.recorder import Recorder

GPU, HOST = torch.device("cuda:0"), torch.device("cpu")
_FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.full, torch.tensor)  # on the host unless a device is given


class PeakRecorder(Recorder):
    """Records the most bytes on the GPU, and the most on the host; tensors on the device ``meta`` have none.

    What ops create is on the host if all of their inputs are, or if ``Devices`` says so.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.host_live = self.host_peak = 0
        self.placed: bool | None = None  # whether new storages are on the host; None: as the inputs
        self._creates_on_host = False
        self._on_host: set[int] = set()

    def is_on_host(self, tensor: torch.Tensor) -> bool:
        return self._numbers.get(tensor.untyped_storage(), -1) in self._on_host

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.placed is None:
            inputs = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            self._creates_on_host = bool(inputs) and all(map(self.is_on_host, inputs))
        else:
            self._creates_on_host = self.placed
        return super().__torch_dispatch__(func, types, args, kwargs)

    def see(self, tensor: torch.Tensor, op: str = "resident") -> None:
        if tensor.device.type != "meta":
            super().see(tensor, op)

    def _resize(self, number: int, nbytes: int, op: str, itemsize: int = 1) -> None:
        if op not in ("release", "resize_") and self._creates_on_host:
            self._on_host.add(number)
        before = self.live
        super()._resize(number, nbytes, op, itemsize)
        self.changes.clear()
        if number in self._on_host:
            self.host_live += self.live - before
            self.live = before
        self.peak, self.host_peak = max(self.peak, self.live), max(self.host_peak, self.host_live)


class Devices(TorchFunctionMode):
    """Lets Python code see tensors on ``GPU`` and ``HOST``, and move tensors between them.

    Args:
        recorder: records the storages, and knows where each is.
    """

    def __init__(self, recorder: PeakRecorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.device.__get__:
            return self._device_of(args[0])
        if func is torch.Tensor.cpu:
            return self._moved(args[0], HOST, {})
        if func is torch.Tensor.to:
            return self._to(*args, **kwargs)
        if func is torch.Tensor.backward:
            # A mode is off while it handles a function, but the hooks of gradients need it.
            with self, mock.patch.object(torch.autograd, "has_torch_function", return_value=False):
                return torch.autograd.backward(args[0], kwargs.get("gradient"), kwargs.get("retain_graph"))
        device = kwargs.get("device")
        if device is None and func not in _FACTORIES:
            return func(*args, **kwargs)
        device = HOST if device is None else device
        with self._placing(torch.device(device)):
            return func(*args, **(kwargs if torch.device(device).type == "meta" else {**kwargs, "device": HOST}))

    def _device_of(self, tensor: torch.Tensor) -> torch.device:
        real = tensor.device
        return GPU if real.type == "cpu" and not self.recorder.is_on_host(tensor) else real

    def _to(self, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        device = kwargs.pop("device", None)
        for arg in args:
            if isinstance(arg, torch.Tensor):
                device, kwargs["dtype"] = self._device_of(arg), arg.dtype
            elif isinstance(arg, torch.dtype):
                kwargs["dtype"] = arg
            elif isinstance(arg, (str, torch.device)):
                device = torch.device(arg)
        return self._moved(tensor, self._device_of(tensor) if device is None else torch.device(device), kwargs)

    def _moved(self, tensor: torch.Tensor, device: torch.device, kwargs: dict[str, Any]) -> torch.Tensor:
        if self._device_of(tensor).type == device.type or device.type == "meta":
            return tensor.to(**kwargs) if kwargs else tensor
        with self._placing(device):
            copy = torch.empty_like(tensor, dtype=kwargs.get("dtype") or tensor.dtype)
        copy.copy_(tensor)
        return copy

    @contextmanager
    def _placing(self, device: torch.device) -> Iterator[None]:
        before, self.recorder.placed = self.recorder.placed, device.type == "cpu"
        try:
            yield
        finally:
            self.recorder.placed = before
