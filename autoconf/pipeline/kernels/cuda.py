"""Fake versions of the CUDA kernels that training code calls, for fake tensors on a CPU.

Each autograd function allocates the same storages as its kernel and saves the same tensors; no figure is written by
hand. Comments name the source of each claim.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import bitsandbytes
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import DefaultDeviceType

from autoconf.pipeline.kernels import mamba


class _FlashAttention(torch.autograd.Function):
    """FlashAttention 2 in its own layout, (batch, tokens, heads, head_dim); no memory is quadratic in tokens.

    csrc/flash_attn/flash_api.cpp of flash-attn 2.7. mha_fwd: output and a float32 log-sum-exp per query and head.
    mha_bwd: a float32 dot product per query and head, a float32 accumulator of dq, and if heads share keys and
    values, dk and dv of every query head, which are summed over the groups at the end. q, k, v, output and log-sum-exp
    are saved (flash_attn/flash_attn_interface.py).
    """

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        batch, tokens, heads, _ = query.shape
        logsumexp = query.new_empty((batch, heads, tokens), dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, logsumexp)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        query, key, value, _, logsumexp = ctx.saved_tensors
        _output_gradient = gradients[0].contiguous()
        dq, dk, dv = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (query, key, value))
        _workspace = [torch.empty_like(logsumexp), torch.empty_like(dq, dtype=torch.float32)]
        if key.shape[2] != query.shape[2]:
            _workspace += [torch.empty_like(dq), torch.empty_like(dq)]
            # The sums over groups replace dk and dv; at::sum_out writes into them.
        return dq, dk, dv


def flash_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """Replace transformers' ``_flash_attention_forward``; the arguments are its first three.

    >>> query, key, value = (torch.empty(2, 512, heads, 64, device="meta") for heads in (8, 2, 2))
    >>> flash_attention(query, key, value).shape
    torch.Size([2, 512, 8, 64])
    """
    return _FlashAttention.apply(query, key, value)


_where = torch.where


def _cuda_dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    # CUDA's kernel saves one byte per element; on the CPU dropout decomposes and saves a mask of the input's dtype.
    return torch.native_dropout(input, p, True)[0] if training and p > 0 else input


# Functions of torch.nn.functional that autocast runs in float32 on CUDA but not on the CPU (ATen/autocast_mode.h,
# AT_FORALL_FP32): those that modeling code calls on tensors that it did not upcast itself.
_IN_FLOAT32 = ("cross_entropy", "layer_norm", "log_softmax", "softmax", "softplus")


def _in_float32(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(function)
    def as_on_cuda(*args: Any, **kwargs: Any) -> torch.Tensor:
        if torch.is_autocast_enabled("cuda"):
            args = tuple(_as_float32(argument) for argument in args)
        return function(*args, **kwargs)

    return as_on_cuda


def _as_float32(argument: Any) -> Any:
    if isinstance(argument, torch.Tensor) and argument.dtype == torch.bfloat16:
        return argument.float()
    return argument


def _balanced(experts: int) -> Callable[..., Any]:
    """Replace ``torch.where`` for modeling code that loops over experts, so that routing is balanced."""

    def where(*args: Any, **kwargs: Any) -> Any:
        if len(args) > 1 or kwargs:
            return _where(*args, **kwargs)
        (mask,) = args  # shape (top_k, tokens)
        return tuple(mask.new_empty(mask.numel() // experts, dtype=torch.long) for _ in mask.shape)

    return where


class _GroupedProduct(torch.autograd.Function):
    """A grouped matrix product in float32, which CUDA supports and fake tensors do not.

    torch/include/ATen/native/GroupedMMUtils.h, _grouped_mm_fallback: group by group, into the result. Like the function
    for bfloat16, it saves only tensors that the requested gradients need.
    """

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        of_rows, of_weight = ctx.needs_input_grad
        ctx.save_for_backward(rows if of_weight else None, weight if of_rows else None)
        ctx.rows, ctx.weight = rows.shape, (weight.shape, weight.stride())
        return rows.new_empty(rows.shape[0], weight.shape[-1])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        of_rows, of_weight = ctx.needs_input_grad
        (gradient,) = gradients
        d_rows = gradient.new_empty(ctx.rows) if of_rows else None
        return d_rows, gradient.new_empty_strided(*ctx.weight) if of_weight else None


def _grouped_mm_of_any_dtype(grouped_mm: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(grouped_mm)
    def as_on_cuda(rows: torch.Tensor, weight: torch.Tensor, **options: Any) -> torch.Tensor:
        if rows.dtype == torch.float32:
            return _GroupedProduct.apply(rows, weight)
        return grouped_mm(rows, weight, **options)

    return as_on_cuda


@contextmanager
def on_cuda(model: torch.nn.Module, experts: int | None) -> Iterator[None]:
    """Run a model's code under ``FakeTensorMode`` as on a CUDA device.

    Args:
        model: a causal LM of transformers, built with FlashAttention.
        experts: number of experts of each layer, for modeling code that loops over experts; ``None`` without experts.
    """
    with ExitStack() as stack:
        modeling = _modeling_files(model)
        for module in modeling | _flash_attention_integration():
            stack.enter_context(mock.patch.object(module, "_flash_attention_forward", flash_attention, create=True))
        for module in modeling:
            if hasattr(module, _MAMBA):
                stack.enter_context(mock.patch.object(module, _MAMBA, mamba.split_conv1d_scan_combined))
        # Libraries check this before they enable autocast, in the forward pass and when a checkpoint is recomputed.
        for question in ("is_available", "is_bf16_supported"):
            stack.enter_context(mock.patch.object(torch.cuda, question, lambda *_, **__: True))
        # The device whose autocast a checkpoint restores; fake tensors are on the CPU.
        stack.enter_context(mock.patch.object(DefaultDeviceType, "get_device_type", lambda: "cuda"))
        stack.enter_context(mock.patch.object(F, "dropout", _cuda_dropout))
        for name in _IN_FLOAT32:
            stack.enter_context(mock.patch.object(F, name, _in_float32(getattr(F, name))))
        if experts is not None:
            stack.enter_context(mock.patch.object(torch, "where", _balanced(experts)))
        if hasattr(F, "grouped_mm"):  # since torch 2.10
            stack.enter_context(mock.patch.object(F, "grouped_mm", _grouped_mm_of_any_dtype(F.grouped_mm)))
        yield


def _modeling_files(model: torch.nn.Module) -> set[Any]:
    """The modules of transformers that define a model; older versions call FlashAttention from there."""
    modules = {sys.modules[type(m).__module__] for m in model.modules()}
    return {m for m in modules if m.__name__.startswith("transformers.models.")}


def _flash_attention_integration() -> set[Any]:
    integration = sys.modules.get("transformers.integrations.flash_attention")
    return {integration} if integration else set()


# transformers/integrations/hub_kernels.py: unless mamba_ssm was installed on import, the function of the modeling
# file does nothing, and the layer runs a reference scan.
_MAMBA = "mamba2_split_conv1d_scan_combined"


class _MatMul4Bit(torch.autograd.Function):
    """A product with a 4-bit weight: bitsandbytes/autograd/_functions.py, MatMul4Bit.

    The weight is dequantized in the forward and again in the backward pass, to its original dtype, after its
    double-quantized absmax (functional.py, dequantize_4bit), and cast to the input's dtype. Only the packed weight is
    saved.
    """

    @staticmethod
    def forward(
        ctx: Any, input: torch.Tensor, packed: torch.Tensor, shape: tuple[int, int], dtype: torch.dtype
    ) -> torch.Tensor:
        ctx.save_for_backward(packed)
        ctx.shape, ctx.dtype = shape, dtype
        return F.linear(input, dequantized(packed, shape, dtype).to(input.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (packed,) = ctx.saved_tensors
        (gradient,) = gradients
        weight = dequantized(packed, ctx.shape, ctx.dtype).to(gradient.dtype)
        return torch.matmul(gradient, weight), None, None, None


_BLOCK, _NESTED_BLOCK = (
    64,
    256,
)  # parameters per absmax, and absmax values per second-level absmax (bitsandbytes' defaults)


def dequantized(packed: torch.Tensor, shape: tuple[int, int], dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Make the copy of a 4-bit weight in its original dtype, after dequantizing its absmax.

    >>> dequantized(torch.empty(8 * 64 // 2, 1, dtype=torch.uint8, device="meta"), (8, 64)).dtype
    torch.bfloat16
    """
    _absmax = packed.new_empty(shape[0] * shape[1] // _BLOCK, dtype=torch.float32)
    return packed.new_empty(shape, dtype=dtype)


def _absmax(shape: tuple[int, int]) -> tuple[int, int]:
    blocks = shape[0] * shape[1] // _BLOCK
    return blocks, -(-blocks // _NESTED_BLOCK)


def absmax_bytes(shape: tuple[int, int]) -> int:
    """Bytes of a 4-bit weight's absmax: one byte each, plus float32 for the second level.

    >>> absmax_bytes((4096, 4096))
    266240
    """
    first, second = _absmax(shape)
    return first + 4 * second


class Linear4bit(bitsandbytes.nn.Linear4bit):
    """bitsandbytes' NF4 layer with double quantization, which PEFT recognizes, without its CUDA code."""

    compute_type_is_set: bool  # bitsandbytes' own default, repeated in case it is not installed

    def __init__(self, linear: torch.nn.Linear, storage: torch.dtype) -> None:
        super().__init__(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            compute_dtype=linear.weight.dtype,
            quant_type="nf4",
            quant_storage=storage,
            device="meta",
        )
        self.shape, self.dtype = (linear.out_features, linear.in_features), linear.weight.dtype
        elements = linear.in_features * linear.out_features
        packed = torch.empty((elements // (2 * storage.itemsize), 1), dtype=storage, device="meta")
        self.weight = bitsandbytes.nn.Params4bit(
            packed, requires_grad=False, quant_type="nf4", quant_storage=storage, bnb_quantized=True
        )
        if linear.bias is not None:
            self.bias = torch.nn.Parameter(linear.bias.data, requires_grad=False)
        self.absmax: list[torch.Tensor] = []

    def allocate_absmax(self) -> None:
        """Make the quantization state, which FSDP does not shard, because it is neither a parameter nor a buffer."""
        first, second = _absmax(self.shape)
        self.absmax = [torch.empty(first, dtype=torch.uint8), torch.empty(second)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.compute_type_is_set:  # set immediately since 0.44; before, the first input decides
            self.set_compute_type(x)
            self.compute_type_is_set = True
        out = _MatMul4Bit.apply(x.to(self.compute_dtype), self.weight, self.shape, self.dtype)
        if self.bias is not None:
            out = out + self.bias.to(self.compute_dtype)
        return out.to(x.dtype)


@contextmanager
def unpacking_for_dora() -> Iterator[None]:
    """Let PEFT's DoRA unpack 4-bit weights, of which it takes the norm, without bitsandbytes' CUDA code."""
    from peft.tuners.lora import dora

    plain = dora.dequantize_module_weight

    def unpacked(layer: torch.nn.Module) -> Any:
        return dequantized(layer.weight, layer.shape, layer.dtype) if isinstance(layer, Linear4bit) else plain(layer)

    with mock.patch.object(dora, "dequantize_module_weight", unpacked):
        yield
