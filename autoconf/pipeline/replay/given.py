"""Record jobs with options that a stack does not have: arguments of scripts, attention and loss of older libraries."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch.distributed.fsdp import FullyShardedDataParallel

from autoconf.pipeline.kernels import cuda as cuda_kernels
from autoconf.pipeline.tracing import fsdp_units


@contextmanager
def fsdp1_arguments(**given: Any) -> Iterator[None]:
    """Wrap with other arguments of FSDP1 than accelerate's defaults.

    Args:
        given: arguments of ``FullyShardedDataParallel``.
    """

    class Given(FullyShardedDataParallel):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, **given})

    with mock.patch.object(fsdp_units, "FullyShardedDataParallel", Given):
        yield


@contextmanager
def eager_attention() -> Iterator[None]:
    """Compute attention with scores, as transformers did in 2023: LlamaAttention.forward of release 4.31 to 4.35."""
    with mock.patch.object(cuda_kernels, "flash_attention", _eager):
        yield


def _eager(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """Attention over all pairs of tokens; tensors have the layout of FlashAttention: (batch, tokens, heads, width)."""
    groups = query.shape[2] // key.shape[2]
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    if groups > 1:  # repeat_kv
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    scores = torch.matmul(query, key.transpose(2, 3)) / math.sqrt(query.shape[-1])
    scores = scores + scores.new_empty((len(scores), 1, *scores.shape[2:]))  # the mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(weights, value).transpose(1, 2).contiguous()


@contextmanager
def shifted_logits() -> Iterator[None]:
    """Shift logits instead of labels, which copies them: transformers/loss/loss_utils.py of release 4.46.1."""
    from transformers.loss import loss_utils  # since release 4.46; other jobs are recorded with earlier ones

    with mock.patch.dict(loss_utils.LOSS_MAPPING, ForCausalLM=_loss_of_shifted_logits):
        yield


def _loss_of_shifted_logits(logits: torch.Tensor, labels: torch.Tensor, vocab_size: int, **_: Any) -> torch.Tensor:
    logits = logits.float()
    shifted = logits[..., :-1, :].contiguous()
    return F.cross_entropy(shifted.view(-1, vocab_size), labels[..., 1:].contiguous().view(-1))
