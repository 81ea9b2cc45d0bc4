"""The work of one optimizer step on one GPU: arithmetic, memory traffic, launches and messages.

All figures are per GPU. They follow from shapes, stack and layout only, never from the type of GPU. They are in closed
form, which has how they grow with shapes and batch; memory traffic and launches are multiplied by what was counted on
the training code (``counts``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from autoconf.jobs.stack import Stack
from autoconf.speed.counts import Counts, counts_of
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
_LAYER = 34
# Kernels of each expert that has a token, in the forward pass. transformers 4 loops over experts, as the measured runs
# did: GraniteMoeParallelExperts has two products for each; MixtralSparseMoeBlock selects the tokens, computes three
# products, two activations and the weighting, and adds the result.
_EXPERT = {"granitemoe": 2, "granitemoehybrid": 2}
_OTHER_EXPERT = 12
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

_UNPACKING = 0.5 + 2.0  # bytes of a weight of 4 bits, read, and in 16 bits, written
# Forward passes without gradients for each sample, trl v1.9.0: dpo_trainer.py runs the reference model, kto_trainer.py
# also both models on completions of other samples (_compute_kl_logps).
_REFERENCES = {"dpo": 1, "kto": 3}
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


def work_of(shapes: Shapes, method: str, stack: Stack, layout: Layout, counts: Counts | None = None) -> Work:
    """Compute the work of a job.

    Args:
        shapes: the model's shapes.
        method: ``full``, ``lora`` or ``qlora``.
        stack: the training stack.
        layout: the batch and the GPUs.
        counts: what was counted next to the closed form; by default that of the model's family.
    """
    counts = counts_of(shapes.family, method, stack) if counts is None else counts
    full, tokens, more, references = method == "full", layout.tokens, _more_passes(stack), _references(stack)
    trains_head = full or stack.trains_head
    products = 2.0 * tokens
    layer = products * shapes.layers * shapes.layer_active
    head = products * (shapes.hidden if stack.objective == "reward" else shapes.head)  # one score for each token
    # Causal: a token attends to half of its sample on average.
    scores = tokens * shapes.scores * layout.tokens_per_sample / 2 * shapes.layers
    head_again = 1 if stack.loss == "chunked_nll" else 0
    return Work(
        flops=layer * (2 + more + full) + head * (2 + head_again + references + trains_head),
        attention_flops=scores * (1 + more + 2.5),  # FlashAttention computes scores again in its backward pass
        model_flops=layer * (2 + references + full) + head * (2 + references + trains_head) + scores * (3 + references),
        dtype=_computing(stack),
        bytes=_bytes(traffic_of(shapes, full, stack, layout), counts)
        + (0.0 if _on_host(stack, layout, "optimizer") else _update(shapes, full, stack, layout)),
        launches=dense_launches(shapes, full, stack) * counts.operations
        + counts.outside
        + looped_launches(shapes, stack, tokens)
        + 400.0 / layout.steps,
        sent=_sent(shapes, full, stack, layout),
        messages=_messages(shapes, full, stack, layout),
        offloaded=_offloaded(shapes, full, stack, layout),
        host_bytes=_update(shapes, full, stack, layout) if _on_host(stack, layout, "optimizer") else 0.0,
        tokens=tokens,
    )


def trained(shapes: Shapes, full: bool, stack: Stack) -> float:
    """Trainable parameters."""
    if full:
        return shapes.layers * shapes.layer_stored + shapes.head
    whole = (stack.trains_embeddings + stack.trains_head) * shapes.head
    return float(shapes.layers * _targets(stack) * stack.lora_r * 2 * shapes.hidden + whole)


def _references(stack: Stack) -> int:
    """Forward passes without gradients that the objective adds for each sample."""
    return _REFERENCES.get(stack.objective, 0)


def _more_passes(stack: Stack) -> int:
    """Forward passes of the layers besides the first one: those that checkpoints repeat, and the objective's."""
    return (0 if stack.gradient_checkpointing == "none" else 1) + _references(stack)


def _computing(stack: Stack) -> str:
    """The dtype of matrix products."""
    if stack.mixed_precision != "no":
        return "float16" if stack.mixed_precision == "fp16" else "bfloat16"
    return stack.torch_dtype


def _reductions(stack: Stack, layout: Layout) -> float:
    """How often gradients are reduced for one micro-batch.

    deepspeed/runtime/zero/stage_1_and_2.py and stage3.py: where gradients are sharded, every micro-batch.
    """
    every = stack.gradient_sync == "every" or stack.sharding in ("zero2", "zero3")
    return 1.0 if every else 1 / layout.steps


def _targets(stack: Stack) -> int:
    return _TARGETS[stack.lora_targets] if isinstance(stack.lora_targets, str) else len(stack.lora_targets)


def unpacking(shapes: Shapes, stack: Stack) -> float:
    """Bytes that unpacking the layers' weights reads and writes in one micro-batch."""
    passes = 2 + _more_passes(stack) if stack.quantization != "none" else 0
    return _UNPACKING * shapes.layers * shapes.layer_stored * passes


def _weight_bytes(stack: Stack) -> float:
    """Bytes that one pass over a weight reads and writes."""
    if stack.quantization == "int8":
        return 1 + 2 + 2
    if stack.quantization != "none":
        return _UNPACKING + 2
    if stack.torch_dtype == "float32" and stack.mixed_precision != "no":
        return 4 + 2 + 2  # cast, written, read
    return 4.0 if stack.torch_dtype == "float32" else 2.0


class Traffic(NamedTuple):
    """Bytes of one micro-batch in closed form: weights and activations of layers, weights of the head, and the loss."""

    weights: float
    activations: float
    head: float
    loss: float


def traffic_of(shapes: Shapes, full: bool, stack: Stack, layout: Layout) -> Traffic:
    """Bytes that one micro-batch reads and writes in the GPU's memory, in closed form."""
    tokens, targets = layout.tokens, 0 if full else _targets(stack)
    more, references = _more_passes(stack), _references(stack)
    used = min(1.0, tokens * shapes.chosen / shapes.experts)  # share of the experts that have a token
    layers = shapes.attention + shapes.active + (shapes.stored - shapes.active) * used
    weights = shapes.layers * layers * _weight_bytes(stack) * (2 + more)
    gradients = 6.0 * shapes.layers * layers if full else 0.0  # written, then added
    norm = _NORM_FUSED if "fast_rms_layernorm" in stack.kernels else _NORM
    rotary = _ROTARY_FUSED if "fast_rope_embeddings" in stack.kernels else _ROTARY
    adapter = _ADAPTER_FUSED if "fused_lora" in stack.kernels else _ADAPTER
    width = 2.0 if stack.torch_dtype == "float32" and stack.mixed_precision == "no" else 1.0
    hidden = shapes.hidden * (norm + 12 + adapter * targets)
    each = width * (hidden + shapes.mixer * (8 + rotary) + shapes.inner * (8 + _GATE))
    loss = _LOSS_FUSED if "fast_loss" in stack.kernels else _LOSS if stack.loss == "full" else _LOSS_CHUNKED
    vocabulary = 1 if stack.objective == "reward" else shapes.vocabulary
    return Traffic(
        weights=weights + gradients,
        activations=tokens * shapes.layers * each * (3 + more),
        head=shapes.head * (4.0 + 2 * references),
        loss=tokens * vocabulary * loss * (1 + references / 2),
    )


def _bytes(traffic: Traffic, counts: Counts) -> float:
    return (
        traffic.weights * counts.weights
        + traffic.activations * counts.activations
        + traffic.head * counts.head
        + traffic.loss * counts.loss
    )


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
        stored = _stored_bytes(shapes, stack, size)
        found += (2 + _references(stack)) * (stored + 2 * shapes.head * size)  # with the embeddings
    if _on_host(stack, layout, "optimizer"):
        back = 0.0 if _on_host(stack, layout, "parameters") else trainable / layout.steps
        found += trainable + back
    return found / layout.gpus


def dense_launches(shapes: Shapes, full: bool, stack: Stack) -> float:
    """Kernels of the decoder layers of one micro-batch without those of experts, in closed form."""
    adapters = 0 if full else _OF_ADAPTER * _targets(stack)
    quantized = _OF_QUANTIZED * _MATRICES if stack.quantization != "none" else 0
    return shapes.layers * (_LAYER + adapters + quantized) * (3 + _more_passes(stack))


def looped_launches(shapes: Shapes, stack: Stack, tokens: float) -> float:
    """Kernels of experts that run one after the other, as in the measured runs; each one that has a token."""
    if shapes.experts == 1:
        return 0.0
    busy = min(float(shapes.experts), tokens * shapes.chosen)
    return shapes.layers * _EXPERT.get(shapes.family, _OTHER_EXPERT) * busy * (3 + _more_passes(stack))


def _stored_bytes(shapes: Shapes, stack: Stack, size: float) -> float:
    """Bytes of the layers' parameters."""
    packed = {"none": size, "int8": 1.0}.get(stack.quantization, 0.5)
    return shapes.layers * shapes.layer_stored * packed


def _sent(shapes: Shapes, full: bool, stack: Stack, layout: Layout) -> float:
    """Bytes that each GPU sends for one micro-batch."""
    if layout.gpus == 1:
        return 0.0
    others = (layout.gpus - 1) / layout.gpus
    size = 4.0 if stack.torch_dtype == "float32" and stack.mixed_precision == "no" else 2.0
    gathered = (_stored_bytes(shapes, stack, size) + shapes.head * size) * (
        (1 if stack.keeps_gathered else 2) + _references(stack)
    )
    gradients = trained(shapes, full, stack) * (size if full else 4.0) * _reductions(stack, layout)
    if stack.sharding in SHARDED_WEIGHTS:
        return others * (gathered + gradients)
    return others * 2 * gradients  # an all-reduce is a reduce-scatter and an all-gather


def _messages(shapes: Shapes, full: bool, stack: Stack, layout: Layout) -> float:
    """Collective operations of one micro-batch."""
    if layout.gpus == 1:
        return 0.0
    reductions = _reductions(stack, layout)
    if stack.sharding not in SHARDED_WEIGHTS:
        return (shapes.layers / 4 + 1) * reductions  # buckets of 25 MB or more
    # PEFT's policy wraps each adapter's two matrices in units of their own under FSDP1.
    adapters = 0 if full or stack.sharding != "fsdp1" or not stack.shard_adapters else 2 * _targets(stack)
    return (shapes.layers * (1 + adapters) + 1) * (2 + _references(stack) + reductions)
