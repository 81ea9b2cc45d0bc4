"""DeepSpeed's accelerator for ``two_devices``: a GPU that is told apart from its host. Imports DeepSpeed."""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

from autoconf.pipeline.validation.two_devices import GPU, TwoDevicesRecorder


class GpuAccelerator(CPU_Accelerator):
    """Answers as DeepSpeed's accelerator for CUDA where memory depends on it; it has no streams."""

    def __init__(self, recorder: TwoDevicesRecorder) -> None:
        super().__init__()
        self._recorder = recorder

    def device_name(self, device_index: Any = None) -> str:
        return str(GPU)

    def current_device_name(self) -> str:
        return str(GPU)

    def on_accelerator(self, tensor: torch.Tensor) -> bool:
        return self._recorder.device(tensor) == GPU

    def pin_memory(self, tensor: torch.Tensor, make_copy: bool = True, match_shape: bool = True) -> torch.Tensor:
        pinned = self._recorder.pinned(tensor)
        return pinned if match_shape else pinned.view(-1)

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        return self._recorder.is_pinned(tensor)

    @property
    def ByteTensor(self) -> Any:
        return _made(torch.uint8)

    @property
    def FloatTensor(self) -> Any:
        return _made(torch.float32)


def _made(dtype: torch.dtype) -> Any:
    return lambda values: torch.tensor(values, dtype=dtype, device=GPU)
