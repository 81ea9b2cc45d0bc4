"""Count the tensors of a process of DeepSpeed on its GPU, and tell them from those of its host, where both are the CPU.

DeepSpeed's accelerator for CPUs has ``cpu`` as the name of both. Here the GPU is ``cpu:0``, and the host ``cpu``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch.autograd.graph import _engine_run_backward
from torch.distributed import distributed_c10d
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter

from autoconf.pipeline.tracing.recorder import Recorder

GPU, HOST = torch.device("cpu", 0), torch.device("cpu")


class PeakRecorder(Recorder):
    """Records the most bytes on the GPU; tensors on the device ``meta`` have none.

    A tensor is on the device that the program names for it, else on that of the tensors that it is made of.
    """

    peak = 0
    paused = False
    has_host = False  # where tensors are that are made of none, without a device

    def __init__(self) -> None:
        super().__init__()
        self._placed: bool | None = None  # whether new tensors are on the host

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._placed is not None:
            return super().__torch_dispatch__(func, types, args, kwargs)
        inputs = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, torch.Tensor) and not leaf.is_meta]
        with self.placing(all(map(self.is_in_host_memory, inputs)) if inputs else self.has_host):
            return super().__torch_dispatch__(func, types, args, kwargs)

    @contextmanager
    def placing(self, host: bool) -> Iterator[None]:
        """Place new tensors on the host, or on the GPU."""
        before, self._placed = self._placed, host
        try:
            yield
        finally:
            self._placed = before

    def see(self, tensor: torch.Tensor, op: str = "resident") -> None:
        if not tensor.is_meta and not self.paused:
            super().see(tensor, op)

    def _resize(self, number: int, nbytes: int, op: str, itemsize: int = 1) -> None:
        if self._placed and number == len(self._sizes) - 1 and not self._sizes[number]:  # a new one
            self._host.add(number)
        if number in self._host:
            return
        super()._resize(number, nbytes, op, itemsize)
        self.changes.clear()
        self.peak = max(self.peak, self.live)

    @contextmanager
    def without_copies_of_gloo(self) -> Iterator[None]:
        """Do not see the copy of its input that gloo's reduce-scatter makes, and NCCL's does not."""
        # torch 2.13.0, csrc/distributed/c10d/ProcessGroupGloo.cpp, reduce_scatter_tensor_coalesced
        reduce_scatter = distributed_c10d.reduce_scatter_single

        def unseen(*args: Any, **kwargs: Any) -> Any:
            self.paused = True
            try:
                return reduce_scatter(*args, **kwargs)
            finally:
                self.paused = False

        with mock.patch.object(distributed_c10d, "reduce_scatter_single", unseen):
            yield


class TwoDevices(TorchFunctionMode):
    """Makes each tensor on the device that a program names, and copies it when it moves to the other one."""

    def __init__(self, recorder: PeakRecorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == torch.Tensor.device.__get__:
            return self._device(args[0])
        if func is torch.Tensor.cpu:
            return self._moved(args[0], HOST, None)
        if func is torch.Tensor.to:
            named = [*args[1:], kwargs.get("device"), kwargs.get("dtype")]
            like = next((self._device(each) for each in named if isinstance(each, torch.Tensor)), None)
            device = next((torch.device(each) for each in named if isinstance(each, str | torch.device)), like)
            dtype = next((each for each in named if isinstance(each, torch.dtype)), None)
            if device is not None and device.type == "cpu" and not args[0].is_meta:
                return self._moved(args[0], device, dtype)
        elif kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu":
            with self._recorder.placing(torch.device(kwargs["device"]) == HOST):
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def _device(self, tensor: torch.Tensor) -> torch.device:
        if tensor.is_meta:
            return torch.device("meta")
        return HOST if self._recorder.is_in_host_memory(tensor) else GPU

    def _moved(self, tensor: torch.Tensor, device: torch.device, dtype: torch.dtype | None) -> torch.Tensor:
        with self._recorder.placing(device == HOST):
            return tensor.to(dtype or tensor.dtype, copy=self._device(tensor) != device)


@contextmanager
def two_devices(recorder: PeakRecorder) -> Iterator[None]:
    """Let DeepSpeed and PyTorch tell the host from the GPU."""
    from deepspeed.accelerator import get_accelerator

    accelerator: Any = get_accelerator()
    mode = TwoDevices(recorder)

    def with_mode(*args: Any, **kwargs: Any) -> Any:  # a mode handles a backward pass, and is off inside of it
        with mode:
            return _engine_run_backward(*args, **kwargs)

    patches: list[Any] = [
        mock.patch.object(accelerator, "current_device_name", lambda: str(GPU)),
        mock.patch.object(accelerator, "device_name", lambda index=None: str(HOST if index is None else GPU)),
        mock.patch.object(accelerator, "on_accelerator", lambda tensor: not recorder.is_in_host_memory(tensor)),
        mock.patch.object(recorder, "has_host", True),
        mock.patch("torch.autograd._engine_run_backward", with_mode),
        # Recomputed tensors are compared with the first ones, device included, while the mode is off.
        mock.patch.dict("torch.utils.checkpoint._allowed_determinism_checks_to_fns", {"default": lambda _: None}),
    ]
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        stack.enter_context(mode)
        yield
