"""The work of one optimizer step on one GPU in closed form: arithmetic, memory traffic, launches and messages.

All figures are per GPU. They follow from shapes, stack and layout only, never from the type of GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from autoconf.jobs.stack import Stack
from autoconf.speed.shapes import Shapes

SHARDED_WEIGHTS = ("fsdp1", "fsdp2", "zero3")

# Bytes that the elementwise operations of a decoder layer read and write in the forward pass, per token and unit of
# width, counted over the operations of transformers' modeling code in bfloat16. With fused kernels each value is read
# and written once.
_NORM, _NORM_FUSED = 56, 12  # two RMSNorms, whose inputs are cast to float32, and the two residual sums
_ROTARY, _ROTARY_FUSED = 20, 4
_GATE = 10  # activation function and product
_ADAPTER, _ADAPTER_FUSED = 30, 6  # casts to float32, dropout, product and sum of one adapter
# Bytes per token and entry of the vocabulary, forward and backward.
_LOSS, _LOSS_FUSED, _LOSS_CHUNKED = 44, 14, 20

# Kernels of one decoder layer in the forward pass, counted as above.
_LAYER, _LAYER_SAVED = 34, 14  # and how many of them fused kernels save
_EXPERT = 8  # of each expert, one after the other
_OF_ADAPTER, _OF_QUANTIZED = 5, 2
_MATRICES = 7  # linear layers of a decoder layer

# Bytes per trainable parameter that an update reads and writes, in units of the parameter's size.
_UPDATE = {
    "adamw_torch": 20.0,  # foreach: one pass over all tensors per operation
    "adamw_torch_fused": 7.0,
    "adamw_bnb_8bit": 5.0,
    "adamw_8bit": 5.0,
    "paged_adamw_8bit": 5.0,
    "paged_adamw_32bit": 11.0,
    "lion_8bit": 4.0,
    "paged_lion_8bit": 4.0,
    "lion_32bit": 7.0,
    "paged_lion_32bit": 7.0,
    "adafactor": 12.0,
    "sgd": 3.0,
}
_CLIPPING = 3.0  # the norm of the gradients, and their product with the factor

_TARGETS = {"default": 2, "attention": 4, "all-linear": _MATRICES}


@dataclass(frozen=True)
class Layout:
    """A job's batch on one GPU, and the GPUs.

    Attributes:
        samples: samples of one micro-batch on each GPU.
        tokens_per_sample: tokens of a sample.
        gpus: all GPUs of the job.
        nodes: nodes that they are on.
        steps: micro-batches of one optimizer step.
    """

    samples: float
    tokens_per_sample: int
    gpus: int
    nodes: int = 1
    steps: int = 1

    @property
    def tokens(self) -> float:
        """Tokens of one micro-batch on each GPU."""
        return self.samples * self.tokens_per_sample


@dataclass(frozen=True)
class Work:
    """The work of one micro-batch on one GPU, and its share of the optimizer step.

    Attributes:
        flops: FLOPs of matrix products, with recomputation.
        attention_flops: FLOPs of scores and weighted sums, with recomputation.
        model_flops: FLOPs of forward and backward pass without recomputation.
        dtype: the dtype of the products.
        bytes: bytes read and written in the GPU's memory.
        launches: kernels launched by the host.
        sent: bytes that each GPU sends.
        messages: collective operations.
        offloaded: bytes between this GPU and the host.
        host_bytes: bytes that the optimizer step on the host reads and writes in its memory.
        tokens: tokens of the micro-batch on this GPU.
    """

    flops: float
    attention_flops: float
    model_flops: float
    dtype: str
    bytes: float
    launches: float
    sent: float
    messages: float
    offloaded: float
    host_bytes: float
    tokens: float


def work_of(shapes: Shapes, method: str, stack: Stack, layout: Layout) -> Work:
    """Count the work of a job.

    Args:
        shapes: the model's shapes.
        method: ``full``, ``lora`` or ``qlora``.
        stack: the training stack.
        layout: the batch and the GPUs.
    """
    full, tokens = method == "full", layout.tokens
    again = 0 if stack.gradient_checkpointing == "none" else 1
    products = 2.0 * tokens
    layer = products * shapes.layers * shapes.layer_active
    head = products * shapes.head
    # Causal: a token attends to half of its sample on average.
    scores = tokens * shapes.scores * layout.tokens_per_sample / 2 * shapes.layers
    head_again = 1 if stack.loss == "chunked_nll" else 0
    targets = 0 if full else _targets(stack)
    return Work(
        flops=layer * (2 + again + full) + head * (2 + head_again + full),
        attention_flops=scores * (1 + again + 2.5),  # FlashAttention computes scores again in its backward pass
        model_flops=(layer + head) * (2 + full) + 3 * scores,
        dtype="float32" if (stack.torch_dtype, stack.mixed_precision) == ("float32", "no") else "bfloat16",
        bytes=_traffic(shapes, full, stack, layout, again, targets)
        + (0.0 if _on_host(stack, layout, "optimizer") else _update(shapes, full, stack, layout)),
        launches=_launches(shapes, stack, again, targets, tokens) + 400.0 / layout.steps,
        sent=_sent(shapes, full, stack, layout),
        messages=_messages(shapes, full, stack, layout, targets),
        offloaded=_offloaded(shapes, full, stack, layout),
        host_bytes=_update(shapes, full, stack, layout) if _on_host(stack, layout, "optimizer") else 0.0,
        tokens=tokens,
    )


def trained(shapes: Shapes, full: bool, stack: Stack) -> float:
    """Trainable parameters."""
    if full:
        return shapes.layers * shapes.layer_stored + shapes.head
    return float(shapes.layers * _targets(stack) * stack.lora_r * 2 * shapes.hidden)


def _targets(stack: Stack) -> int:
    return _TARGETS[stack.lora_targets] if isinstance(stack.lora_targets, str) else len(stack.lora_targets)


def _weight_bytes(stack: Stack) -> float:
    """Bytes that one pass over a weight reads and writes."""
    if stack.quantization != "none":
        return 0.5 + 2 + 2  # unpacked, written, read
    if stack.torch_dtype == "float32" and stack.mixed_precision != "no":
        return 4 + 2 + 2  # cast, written, read
    return 4.0 if stack.torch_dtype == "float32" else 2.0


def _traffic(shapes: Shapes, full: bool, stack: Stack, layout: Layout, again: int, targets: int) -> float:
    """Bytes of weights, activations and loss of one micro-batch."""
    tokens = layout.tokens
    used = min(1.0, tokens * shapes.chosen / shapes.experts)  # share of the experts that have a token
    layers = shapes.attention + shapes.active + (shapes.stored - shapes.active) * used
    weights = shapes.layers * layers * _weight_bytes(stack) * (2 + again) + shapes.head * 4.0
    gradients = 6.0 * shapes.layers * layers if full else 0.0  # written, then added
    norm = _NORM_FUSED if "fast_rms_layernorm" in stack.kernels else _NORM
    rotary = _ROTARY_FUSED if "fast_rope_embeddings" in stack.kernels else _ROTARY
    adapter = _ADAPTER_FUSED if "fused_lora" in stack.kernels else _ADAPTER
    width = 2.0 if stack.torch_dtype == "float32" and stack.mixed_precision == "no" else 1.0
    hidden = shapes.hidden * (norm + 12 + adapter * targets)
    each = width * (hidden + shapes.mixer * (8 + rotary) + shapes.inner * (8 + _GATE))
    loss = _LOSS_FUSED if "fast_loss" in stack.kernels else _LOSS if stack.loss == "full" else _LOSS_CHUNKED
    activations = tokens * (shapes.layers * each * (3 + again) + shapes.vocabulary * loss)
    return weights + gradients + activations


def _update(shapes: Shapes, full: bool, stack: Stack, layout: Layout) -> float:
    """Bytes of the optimizer step, divided over its micro-batches."""
    size = 4 if (stack.torch_dtype if full else stack.adapter_dtype) == "float32" else 2
    shards = layout.gpus if stack.sharding != "ddp" else 1
    return (
        trained(shapes, full, stack)
        * size
        * (_UPDATE.get(stack.optim, _UPDATE["adamw_torch"]) + _CLIPPING)
        / shards
        / layout.steps
    )


def _on_host(stack: Stack, layout: Layout, what: str) -> bool:
    """Whether the host holds the parameters, or the states of the optimizer."""
    if stack.sharding == "fsdp1" and layout.gpus == 1:  # FSDP1 shards nothing there, and offloads nothing
        return False
    return what in stack.offload


def _offloaded(shapes: Shapes, full: bool, stack: Stack, layout: Layout) -> float:
    """Bytes between the host and one GPU for one micro-batch.

    Parameters on the host are copied to the GPU for the forward and for the backward pass. Where the optimizer runs on
    the host, the gradients of each micro-batch are copied there, and after the step the new weights back.
    """
    size = 4.0 if stack.torch_dtype == "float32" and stack.mixed_precision == "no" else 2.0
    trainable = trained(shapes, full, stack) * (size if full else 4.0)
    found = 0.0
    if _on_host(stack, layout, "parameters"):
        stored = shapes.layers * shapes.layer_stored * (0.5 if stack.quantization != "none" else size)
        found += 2 * (stored + 2 * shapes.head * size)  # with the embeddings
    if _on_host(stack, layout, "optimizer"):
        back = 0.0 if _on_host(stack, layout, "parameters") else trainable / layout.steps
        found += trainable + back
    return found / layout.gpus


def _launches(shapes: Shapes, stack: Stack, again: int, targets: int, tokens: float) -> float:
    saved = _LAYER_SAVED if stack.kernels else 0
    busy = min(float(shapes.experts), tokens * shapes.chosen) if shapes.experts > 1 else 0.0
    quantized = _OF_QUANTIZED * _MATRICES if stack.quantization != "none" else 0
    each = _LAYER - saved + _EXPERT * busy + _OF_ADAPTER * targets + quantized
    return shapes.layers * each * (3 + again)


def _sent(shapes: Shapes, full: bool, stack: Stack, layout: Layout) -> float:
    """Bytes that each GPU sends for one micro-batch."""
    if layout.gpus == 1:
        return 0.0
    others = (layout.gpus - 1) / layout.gpus
    size = 4.0 if stack.torch_dtype == "float32" and stack.mixed_precision == "no" else 2.0
    stored = shapes.layers * shapes.layer_stored * (0.5 if stack.quantization != "none" else size)
    gathered = (stored + shapes.head * size) * 2 if stack.sharding in SHARDED_WEIGHTS else 0.0
    gradients = trained(shapes, full, stack) * (size if full else 4.0)
    passes = 1 if stack.sharding in SHARDED_WEIGHTS else 2  # an all-reduce is a reduce-scatter and an all-gather
    return others * (gathered + passes * gradients / layout.steps)


def _messages(shapes: Shapes, full: bool, stack: Stack, layout: Layout, targets: int) -> float:
    """Collective operations of one micro-batch."""
    if layout.gpus == 1:
        return 0.0
    if stack.sharding not in SHARDED_WEIGHTS:
        return (shapes.layers / 4 + 1) / layout.steps  # buckets of 25 MB or more
    # PEFT's policy wraps each adapter's two matrices in units of their own under FSDP1.
    units = 1 + (2 * targets if not full and stack.sharding == "fsdp1" and stack.shard_adapters else 0)
    return (shapes.layers * units + 1) * (2 + 1 / layout.steps)
