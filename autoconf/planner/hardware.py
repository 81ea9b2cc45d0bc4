"""Check compute capability: bfloat16 and FlashAttention-2 need 8.0."""

from __future__ import annotations

from autoconf.jobs.model_config import known_settings
from autoconf.jobs.names import listed
from autoconf.jobs.stack import Stack
from autoconf.predictor.cards import Domain, Gpu

# Sources: CUDA C++ Programming Guide, "Compute Capabilities"; README of flash-attention, "NVIDIA CUDA Support".
_NEEDED = 8.0
# GPU types of versions whose cards have no compute capability; https://developer.nvidia.com/cuda-gpus.
_BELOW = {"Tesla-V100-SXM2-32GB": 7.0, "Tesla-T4": 7.5}


def compute_capability(name: str, gpu: Gpu) -> float | None:
    """The compute capability of a GPU type; ``None``, if it is not listed, means at least 8.0."""
    return gpu.compute_capability if gpu.compute_capability is not None else _BELOW.get(name)


def is_too_old(name: str, gpu: Gpu) -> bool:
    """Whether the compute capability of a GPU type is below the minimum.

    >>> is_too_old("Tesla-T4", Gpu(usable_gib=14.5)), is_too_old("NVIDIA-L4", Gpu(usable_gib=22.0))
    (True, False)
    """
    return (compute_capability(name, gpu) or _NEEDED) < _NEEDED


def refuses(name: str, gpu: Gpu) -> bool:
    """Whether a version refuses most jobs on a GPU type, because its card has the compute capability and it is too low.

    >>> refuses("Tesla-T4", Gpu(usable_gib=14.5)), refuses("Tesla-T4", Gpu(usable_gib=14.5, compute_capability=7.5))
    (False, True)
    """
    return gpu.compute_capability is not None and is_too_old(name, gpu)


def runs_on_older(stack: Stack, model: str) -> bool:
    """Whether a job uses nothing that needs 8.0.

    aten/src/ATen/native/transformers/cuda/sdp_utils.cpp: below 8.0 PyTorch's attention has the memory-efficient kernel,
    and for grouped queries none but the one that holds scores.

    >>> half = Stack(torch_dtype="float16", attention="sdpa")
    >>> runs_on_older(half, "llama-7b"), runs_on_older(half, "mistral-7b-v0.1"), runs_on_older(Stack(), "llama-7b")
    (True, False, False)
    """
    return not needs_newer(stack) and not _groups_queries(model)


def needs_newer(stack: Stack) -> bool:
    """Whether a stack uses bfloat16 or FlashAttention-2."""
    return _uses_bfloat16(stack) or stack.attention != "sdpa"


def _uses_bfloat16(stack: Stack) -> bool:
    return stack.torch_dtype == "bfloat16" or stack.mixed_precision == "bf16"


def _groups_queries(model: str) -> bool:
    """Whether several heads of a model share keys; also if its heads are not known."""
    settings = known_settings(model) or {}
    heads = settings.get("num_attention_heads")
    return heads is None or settings.get("num_key_value_heads", heads) != heads


def refusal(name: str, gpu: Gpu, stack: Stack, domain: Domain, model: str = "") -> str:
    """The reason why a GPU type cannot run a job, with a type that can.

    >>> from autoconf.predictor import registry
    >>> t4 = Gpu(usable_gib=14.5, compute_capability=7.5)
    >>> print(refusal("Tesla-T4", t4, Stack(), registry.card("2.0.0").domain))  # doctest: +NORMALIZE_WHITESPACE
    Tesla-T4 (compute capability 7.5) has no bfloat16 and no FlashAttention-2, which the job uses and which need 8.0; a
    newer type with at least its memory is NVIDIA-A10G
    """
    newer = [
        (other.usable_gib, known)
        for known, other in domain.gpus.items()
        if other.usable_gib >= gpu.usable_gib and not is_too_old(known, other)
    ]
    remedy = f"; a newer type with at least its memory is {min(newer)[1]}" if newer else ""
    if not _groups_queries(model):
        remedy = f"; torch_dtype float16 with mixed_precision fp16, and attention sdpa, run there{remedy}"
    elif stack.attention == "sdpa":
        remedy = f"; there, PyTorch's own attention holds scores of models with grouped queries{remedy}"
    return f"{_lacks(name, gpu, stack)}, which the job uses and which need {_NEEDED}{remedy}"


def warning(name: str, gpu: Gpu, stack: Stack) -> str:
    """A warning about an answer for a GPU type that is too old for the job.

    >>> print(warning("Tesla-T4", Gpu(usable_gib=14.5), Stack()))  # doctest: +NORMALIZE_WHITESPACE
    Tesla-T4 (compute capability 7.5) has no bfloat16 and no FlashAttention-2, which this answer assumes: the job does
    not run there unchanged, and needs a different amount of memory without them
    """
    return (
        f"{_lacks(name, gpu, stack)}, which this answer assumes: the job does not run there unchanged, and needs a "
        f"different amount of memory without them"
    )


def _lacks(name: str, gpu: Gpu, stack: Stack) -> str:
    missing = ["no FlashAttention-2"]  # the memory profiles of every version assume it
    if _uses_bfloat16(stack):
        missing.insert(0, "no bfloat16")
    return f"{name} (compute capability {compute_capability(name, gpu)}) has {listed(missing)}"
