"""Fake versions of the Triton kernels that some stacks use instead of plain ops, as autograd functions.

They follow fms-acceleration's plugin ``fms_acceleration_foak`` (kernels and fused ops extracted from unsloth and
Liger), as of February 2025, when the benchmarks of ``make measured`` ran.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from autoconf.jobs.stack import Stack
from autoconf.pipeline.kernels import cuda as cuda_kernels


@contextmanager
def in_place_of_plain_ops(model: Any, stack: Stack) -> Iterator[None]:
    """Let a model that is not yet sharded run the kernels of a stack."""
    if "fast_rms_layernorm" in stack.kernels:
        for module in _modules(model):
            if type(module).__name__.endswith("RMSNorm"):
                module.forward = _bound(_rms_norm, module)
    if "fused_lora" in stack.kernels:
        for module in _modules(model):
            if all(hasattr(getattr(module, name, None), "lora_A") for name in ("q_proj", "k_proj", "v_proj", "o_proj")):
                _fuse_attention(module)
    if stack.loss != "full":
        causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
        causal_lm.forward = _bound(_forward_with, causal_lm, _loss_of(stack, causal_lm))
    with ExitStack() as patches:
        if "fast_rope_embeddings" in stack.kernels:
            for module in {sys.modules[type(m).__module__] for m in model.modules()}:
                if hasattr(module, "apply_rotary_pos_emb"):
                    patches.enter_context(mock.patch.object(module, "apply_rotary_pos_emb", _rotate_in_place))
        if "fast_loss" in stack.kernels:
            patches.enter_context(mock.patch.object(F, "cross_entropy", _cross_entropy))
        yield


def _modules(model: Any) -> list[Any]:
    return list(model.modules())


def _bound(function: Callable[..., Any], module: nn.Module, *first: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: function(module, *first, *args, **kwargs)


class _RmsNorm(torch.autograd.Function):
    """kernels/unsloth/rms_layernorm.py, Fast_RMS_Layernorm: saves the input and a float32 per token, without a float32
    copy; backward writes into the incoming gradient, and the weight gets no gradient."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(hidden, weight, hidden.new_empty(hidden.shape[:-1], dtype=torch.float32))
        return torch.empty_like(hidden)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


def _rms_norm(module: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    return _RmsNorm.apply(hidden, module.weight)


class _InPlace(torch.autograd.Function):
    """An op that writes into its input, and backward into the incoming gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0].contiguous()


def _rotate_in_place(query: torch.Tensor, key: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
    # kernels/unsloth/rope_embedding.py, Fast_RoPE_Embedding
    return tuple(_InPlace.apply(t.transpose(1, 2)).transpose(1, 2) for t in (query, key))


class _CrossEntropy(torch.autograd.Function):
    """kernels/unsloth/cross_entropy_loss.py, Fast_CrossEntropyLoss: a float32 loss and log-sum-exp per token (one for
    each 65,536 of the vocabulary), and the gradient is written into the logits, which are saved."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        tokens, vocabulary = logits.shape
        losses = logits.new_empty(tokens, dtype=torch.float32)
        logsumexp = logits.new_empty((tokens, -(-vocabulary // 65_536)), dtype=torch.float32)
        ctx.save_for_backward(logits, logsumexp, labels)
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.saved_tensors[0], None


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return _CrossEntropy.apply(logits, labels).sum()


class _FusedLinearCrossEntropy(torch.autograd.Function):
    """fused_ops/liger_ce/fused_linear_cross_entropy_loss.py: logits of one chunk of tokens at a time, with gradients
    computed in the forward pass.

    The loop runs for two chunks, because from the second chunk on the gradient of the previous one is still referenced.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        tokens, width = hidden.shape
        chunks = -(-weight.shape[0] // width)
        chunk = tokens / chunks  # the kernel rounds it up to a power of two
        weight_gradient = torch.zeros_like(weight) if weight.requires_grad else None
        hidden_gradient = torch.zeros_like(hidden)
        losses = hidden.new_zeros(tokens, dtype=torch.float32)
        for _ in range(2):
            logits = hidden[: round(chunk)] @ weight.t()
            logits = logits.float()
            logits = logits.to(hidden.dtype)
            logits_gradient = logits * 1.0
            hidden_gradient[: round(chunk)] = logits_gradient @ weight
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return hidden_gradient, weight_gradient, None


class _LigerLoss(torch.autograd.Function):
    """linkedin/Liger-Kernel, src/liger_kernel/ops/fused_linear_cross_entropy.py, of 2026: as above, for any number of
    tokens; if the head is trained, its gradient is a separate product for each chunk, with a float32 copy.

    It makes no float32 copy of the logits, but rounds a chunk up to a power of two, at most to twice as many tokens.
    The copies of a chunk in the function above are larger than that.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        tokens, width = hidden.shape
        vocabulary = weight.shape[0]
        chunks = -(-vocabulary // width)
        weight_gradient = torch.zeros_like(weight) if weight.requires_grad else None
        hidden_gradient = torch.zeros_like(hidden)
        losses = hidden.new_zeros(tokens, dtype=torch.float32)
        for _ in range(2):
            # As many elements as the logits and the hidden states of a chunk, for any number of tokens.
            logits = hidden.new_empty((tokens, -(-vocabulary // chunks)))
            logits = logits.float()
            logits = logits.to(hidden.dtype)
            _logits_gradient = logits * 1.0
            _chunk_gradient = hidden.new_empty((tokens, -(-width // chunks)))
            if weight_gradient is not None:
                _product = torch.empty_like(weight, dtype=hidden.dtype)
                weight_gradient += _product.float()
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        return losses.sum()

    backward = _FusedLinearCrossEntropy.backward


_TRL_CHUNK = 256  # trl/trainer/sft_trainer.py, _CHUNKED_LM_HEAD_CHUNK_SIZE


def _trl_loss(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, softcap: float | None = None
) -> torch.Tensor:
    """trl/trainer/sft_trainer.py, _chunked_cross_entropy_loss (loss_type "chunked_nll"): a checkpoint for each chunk of
    256 tokens, with float32 logits and a float32 copy of the head.
    """
    order = labels.argsort(stable=True)
    hidden, labels = hidden[order], labels[order]
    loss = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, len(labels), _TRL_CHUNK):
        chunk = slice(start, start + _TRL_CHUNK)
        loss = loss + checkpoint(_trl_chunk, hidden[chunk], weight, labels[chunk], softcap, use_reentrant=False)
    return loss


def _trl_chunk(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, softcap: float | None) -> torch.Tensor:
    logits = hidden.float() @ weight.float().t()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    probabilities = F.log_softmax(logits, dim=-1)
    loss = F.nll_loss(probabilities, labels, reduction="sum")
    _correct = logits.argmax(dim=-1) == labels
    _entropy = -(probabilities.exp() * probabilities).sum(dim=-1)
    return loss


def _loss_of(stack: Stack, causal_lm: Any) -> Callable[..., torch.Tensor]:
    if stack.loss == "chunked_nll":
        return functools.partial(_trl_loss, softcap=getattr(causal_lm.config, "final_logit_softcapping", None))
    return _FusedLinearCrossEntropy.apply if stack.kernels else _LigerLoss.apply


_OF_IMAGES = ("pixel_values", "image_grid_thw", "mm_token_type_ids")  # inputs of vision-language checkpoints


def _forward_with(
    causal_lm: Any, loss: Callable[..., torch.Tensor], input_ids: torch.Tensor, labels: torch.Tensor, **options: Any
) -> dict[str, Any]:
    images = {name: options[name] for name in _OF_IMAGES if name in options}
    hidden = causal_lm.base_model(input_ids=input_ids, **images)[0]
    # The loss of a token predicts the next one: hidden states and labels are shifted and copied.
    hidden = hidden[..., :-1, :].contiguous()
    labels = labels[..., 1:].contiguous()
    weight = causal_lm.get_output_embeddings().weight
    return {"loss": loss(hidden.view(-1, hidden.shape[-1]), weight, labels.view(-1))}


def _times_4bit_with_adapter(
    hidden: torch.Tensor, packed: torch.Tensor, shape: tuple[int, int], down: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """fused_ops/unsloth_lora/utils.py, matmul_lora: the product, and the input after dropout, which is saved."""
    out = F.linear(hidden, cuda_kernels.dequantized(packed, shape))
    dropped = torch.native_dropout(hidden, 0.5, True)[0]
    out += F.linear(F.linear(dropped, down.to(hidden.dtype)), up.to(hidden.dtype))
    return out, dropped


def _adapter_gradients(
    dropped: torch.Tensor, gradient: torch.Tensor, down: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    flat, gradient = dropped.flatten(0, -2), gradient.flatten(0, -2)
    down, up = down.to(flat.dtype), up.to(flat.dtype)
    return (flat.t() @ (gradient @ up)).t(), ((down @ flat.t()) @ gradient).t()


def _add_through_adapter(
    total: torch.Tensor, dropped: torch.Tensor, gradient: torch.Tensor, down: torch.Tensor, up: torch.Tensor
) -> None:
    total += (dropped != 0) * ((gradient @ up.to(gradient.dtype)) @ down.to(gradient.dtype))


class _LoraQKV(torch.autograd.Function):
    """fused_ops/unsloth_lora/bnb/fast_lora.py, LoRA_QKV: saves the input and its three dropouts; backward writes the
    input's gradient into the saved input."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, shapes: list[tuple[int, int]], *weights: torch.Tensor) -> Any:
        outs, dropped = [], []
        for shape, (packed, down, up) in zip(shapes, _triples(weights), strict=True):
            out, after = _times_4bit_with_adapter(hidden, packed, shape, down, up)
            outs.append(out)
            dropped.append(after)
        ctx.shapes = shapes
        ctx.save_for_backward(hidden, *weights, *dropped)
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        hidden, *rest = ctx.saved_tensors
        weights, dropped = rest[:-3], rest[-3:]
        parts = list(zip(ctx.shapes, _triples(weights), dropped, gradients, strict=True))
        adapters = [_adapter_gradients(after, gradient, down, up) for _, (_, down, up), after, gradient in parts]
        total = hidden
        for index, (shape, (packed, down, up), after, gradient) in enumerate(parts):
            weight = cuda_kernels.dequantized(packed, shape)
            if index:
                total += gradient @ weight
            else:
                torch.matmul(gradient, weight, out=total)
            del weight
            _add_through_adapter(total, after, gradient, down, up)
        return (total, None, *(g for a, b in adapters for g in (None, a, b)))


class _LoraO(torch.autograd.Function):
    """LoRA_W of the same file: saves the input and its dropout; the gradient of the input is a new tensor."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, shape: tuple[int, int], *weights: torch.Tensor) -> torch.Tensor:
        out, dropped = _times_4bit_with_adapter(hidden, weights[0], shape, weights[1], weights[2])
        ctx.shape = shape
        ctx.save_for_backward(hidden, *weights, dropped)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        _, packed, down, up, dropped = ctx.saved_tensors
        (gradient,) = gradients
        adapters = _adapter_gradients(dropped, gradient, down, up)
        total = gradient @ cuda_kernels.dequantized(packed, ctx.shape)
        _add_through_adapter(total, dropped, gradient, down, up)
        return (total, None, None, *adapters)


def _triples(weights: Any) -> list[Any]:
    return list(zip(*[iter(weights)] * 3, strict=True))


def _weights(layer: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return layer.base_layer.weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight


def _fuse_attention(attention: Any) -> None:
    """Let an attention module compute its projections with the fused functions; the first call computes all three."""
    waiting: dict[str, torch.Tensor] = {}
    names = ("q_proj", "k_proj", "v_proj")
    layers = [getattr(attention, name) for name in names]

    def project_all(hidden: torch.Tensor) -> torch.Tensor:
        shapes = [layer.base_layer.shape for layer in layers]
        outs = _LoraQKV.apply(hidden, shapes, *(weight for layer in layers for weight in _weights(layer)))
        waiting.update(zip(names, outs, strict=True))
        return waiting.pop("q_proj")

    attention.q_proj.forward = project_all
    for name in names[1:]:
        getattr(attention, name).forward = lambda _, name=name: waiting.pop(name)
    output = attention.o_proj
    output.forward = lambda hidden: _LoraO.apply(hidden, output.base_layer.shape, *_weights(output))
