"""The optimizers of the Trainer, on fake tensors: the classes of PyTorch, transformers and bitsandbytes themselves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import bitsandbytes
import torch
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from transformers.optimization import Adafactor

from autoconf.pipeline.replay.program_recorder import ProgramRecorder
from autoconf.pipeline.tracing.model_setup import Rank

# Optimizer and clipping run on all parameters at once, which is PyTorch's default on CUDA for plain and for distributed
# tensors: torch/optim/optimizer.py, _default_to_fused_or_foreach; torch/utils/_foreach_utils.py, _has_foreach_support;
# torch/distributed/tensor/__init__.py, which adds DTensor to the types of both. Fake tensors are of neither type.
FOREACH = True


def _adamw(rank: Rank, _: ProgramRecorder) -> torch.optim.Optimizer:
    return torch.optim.AdamW(rank.trainable, foreach=FOREACH)


def _adamw_fused(rank: Rank, _: ProgramRecorder) -> torch.optim.Optimizer:
    return torch.optim.AdamW(rank.trainable, fused=True)


def _sgd(rank: Rank, _: ProgramRecorder) -> torch.optim.Optimizer:
    return torch.optim.SGD(rank.trainable, lr=1e-3, foreach=FOREACH)


def _adafactor(rank: Rank, _: ProgramRecorder) -> torch.optim.Optimizer:
    # transformers/trainer_optimizer.py, _get_adafactor
    return Adafactor(rank.trainable, lr=1e-3, scale_parameter=False, relative_step=False)


class _OfBitsandbytes:
    """An optimizer of bitsandbytes on fake tensors; a mixin. Among states of 8 bits, those of embeddings have 32 bits.

    transformers/trainer.py, Trainer.create_optimizer, sets the latter.
    """

    def __init__(self, rank: Rank, recorder: ProgramRecorder, bits: int, *, is_paged: bool) -> None:
        super().__init__(rank.trainable, optim_bits=bits, is_paged=is_paged)  # type: ignore[call-arg]
        self._recorder, self._pages = recorder, is_paged
        self._embeddings = {id(m.weight) for m in rank.model.modules() if isinstance(m, nn.Embedding)}

    def fill_qmap(self) -> None:
        with unset_fake_temporarily():  # the tables are computed from values
            super().fill_qmap()  # type: ignore[misc]

    def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
        embeds = id(group["params"][pindex]) in self._embeddings
        config: dict[str, Any] = super().get_config(gindex, pindex, group)  # type: ignore[misc]
        return {**config, **({"optim_bits": 32} if embeds else {})}

    def get_state_buffer(self, p: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        # bitsandbytes/optim/optimizer.py, get_state_buffer: large paged states are in managed memory, which
        # cudaMallocManaged provides, not PyTorch's allocator.
        if not self._pages or p.numel() < 1e5:
            return torch.zeros_like(p, dtype=dtype)
        return self._recorder.new_in_host_memory(p, dtype)


class _AdamW(_OfBitsandbytes, bitsandbytes.optim.AdamW):
    pass


class _Lion(_OfBitsandbytes, bitsandbytes.optim.Lion):
    pass


_OPTIMIZERS: dict[str, Callable[[Rank, ProgramRecorder], torch.optim.Optimizer]] = {
    "adamw_torch": _adamw,
    "adamw_torch_fused": _adamw_fused,
    "sgd": _sgd,
    "adafactor": _adafactor,
    "adamw_bnb_8bit": partial(_AdamW, bits=8, is_paged=False),
    "adamw_8bit": partial(_AdamW, bits=8, is_paged=False),
    "paged_adamw_8bit": partial(_AdamW, bits=8, is_paged=True),
    "paged_adamw_32bit": partial(_AdamW, bits=32, is_paged=True),
    "lion_8bit": partial(_Lion, bits=8, is_paged=False),
    "lion_32bit": partial(_Lion, bits=32, is_paged=False),
    "paged_lion_8bit": partial(_Lion, bits=8, is_paged=True),
    "paged_lion_32bit": partial(_Lion, bits=32, is_paged=True),
}


def optimizer_of(rank: Rank, recorder: ProgramRecorder) -> torch.optim.Optimizer:
    """Make the optimizer of a job's stack for the trainable parameters of a GPU."""
    return _OPTIMIZERS[rank.job.stack.optim](rank, recorder)
