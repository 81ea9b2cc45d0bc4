"""PyTorch's context parallelism for models that are traced: its own ring attention around a stand-in of the kernel.

torch 2.13.0, torch/distributed/tensor/experimental/_context_parallel/_attention.py: ``context_parallel`` replaces
``scaled_dot_product_attention``. Each GPU has a part of every sample; the functions that are called here pass keys and
values round, and merge what each part gives in float32. ``context_parallel`` itself needs CUDA, because it knows the
kernels of CUDA alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed import _functional_collectives as collectives
from torch.distributed.tensor.experimental._context_parallel._attention import (
    _templated_ring_attention,
    _templated_ring_attention_backward,
)

from autoconf.pipeline.kernels import cuda as cuda_kernels

_TOKENS = 2  # the dimension, as scaled_dot_product_attention has it: (batch, heads, tokens, head_dim)


def _forward(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: Any) -> tuple[torch.Tensor, ...]:
    """aten/src/ATen/native/transformers/cuda/attention.cu, _scaled_dot_product_flash_attention_cuda."""
    batch, heads, tokens, width = query.shape
    out = query.new_empty((batch, tokens, heads, width)).transpose(1, 2)
    return out, query.new_empty((batch, heads, tokens), dtype=torch.float32)


def _backward(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **others: Any) -> tuple[torch.Tensor, ...]:
    """.../cuda/attention_backward.cu, _flash_attention_backward, and flash_api.cpp, mha_bwd, as in ``kernels.cuda``."""
    _contiguous = [others[name].transpose(1, 2).contiguous() for name in ("grad_out", "out")]
    dq, dk, dv = (tensor.new_empty(tensor.transpose(1, 2).shape) for tensor in (query, key, value))
    _workspace = [torch.empty_like(others["logsumexp"]), torch.empty_like(dq, dtype=torch.float32)]
    if key.shape[1] != query.shape[1]:
        batch, heads, _tokens, width = query.shape
        _workspace += [query.new_empty((batch, key.shape[2], heads, width)) for _ in range(2)]
    return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)


class _RingAttention(torch.autograd.Function):
    """What ``_sdpa_handler`` does with the local parts of its arguments, and autograd with the distributed ones."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, group: dist.ProcessGroup
    ) -> torch.Tensor:
        arguments = query, key, value
        out, logsumexp = _templated_ring_attention(group, _TOKENS, _forward, *arguments, is_causal=True)
        ctx.save_for_backward(*arguments, out, logsumexp)
        ctx.group = group
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, logsumexp = ctx.saved_tensors
        of_inputs = _templated_ring_attention_backward(
            ctx.group, _TOKENS, _backward, gradients[0], "grad_out", query, key, value, out, logsumexp, is_causal=True
        )
        return (*of_inputs, None)


@contextmanager
def context_parallel(group: dist.ProcessGroup) -> Iterator[None]:
    """Divide the samples of traced models among the ranks of a group; each sample has an even number of tokens there.

    Args:
        group: the ranks that share samples, which rotate keys and values by PyTorch's default, ``allgather``.
    """

    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        # transformers/integrations/flash_attention.py transposed them, sdpa_attention.py does not.
        parts = (tensor.transpose(1, 2) for tensor in (query, key, value))
        return _RingAttention.apply(*parts, group).transpose(1, 2).contiguous()

    with (
        mock.patch.object(cuda_kernels, "flash_attention", attention),
        mock.patch.object(collectives, "wait_tensor", _waited(collectives.wait_tensor)),
    ):
        yield


def _waited(wait: Any) -> Any:
    """torch/csrc/distributed/c10d/Functional.cpp, wait_tensor, returns its argument, which a fake tensor copies."""
    return lambda tensor: tensor if isinstance(tensor, FakeTensor) else wait(tensor)
