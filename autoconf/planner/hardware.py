"""What a GPU type cannot run, whatever its memory: bfloat16 and FlashAttention-2 need compute capability 8.0."""

from __future__ import annotations

from autoconf.jobs.names import listed
from autoconf.jobs.stack import Stack
from autoconf.predictor.cards import Domain, Gpu

# For both: CUDA C++ Programming Guide, "Compute Capabilities"; README of flash-attention, "NVIDIA CUDA Support".
_NEEDED = 8.0
# Types of versions whose cards name no compute capability; https://developer.nvidia.com/cuda-gpus.
_BELOW = {"Tesla-V100-SXM2-32GB": 7.0, "Tesla-T4": 7.5}


def compute_capability(name: str, gpu: Gpu) -> float | None:
    """The compute capability of a GPU type; ``None`` if it is not known, which means that it is at least 8.0."""
    return gpu.compute_capability if gpu.compute_capability is not None else _BELOW.get(name)


def is_too_old(name: str, gpu: Gpu) -> bool:
    """Whether a GPU type lacks what every training stack needs.

    >>> is_too_old("Tesla-T4", Gpu(usable_gib=14.5)), is_too_old("NVIDIA-L4", Gpu(usable_gib=22.0))
    (True, False)
    """
    return (compute_capability(name, gpu) or _NEEDED) < _NEEDED


def refuses(name: str, gpu: Gpu) -> bool:
    """Whether a version refuses all jobs on a GPU type: its card names the type's compute capability.

    >>> refuses("Tesla-T4", Gpu(usable_gib=14.5)), refuses("Tesla-T4", Gpu(usable_gib=14.5, compute_capability=7.5))
    (False, True)
    """
    return gpu.compute_capability is not None and is_too_old(name, gpu)


def refusal(name: str, gpu: Gpu, stack: Stack, domain: Domain) -> str:
    """Why a GPU type cannot run a job, and which type can.

    >>> from autoconf.predictor import registry
    >>> t4 = Gpu(usable_gib=14.5, compute_capability=7.5)
    >>> print(refusal("Tesla-T4", t4, Stack(), registry.card("2.0.0").domain))  # doctest: +NORMALIZE_WHITESPACE
    Tesla-T4 (compute capability 7.5) has no bfloat16 and no FlashAttention-2, which need 8.0 and which the job trains
    with; a newer type with at least its memory is NVIDIA-A10G
    """
    newer = [
        (other.usable_gib, known)
        for known, other in domain.gpus.items()
        if other.usable_gib >= gpu.usable_gib and not is_too_old(known, other)
    ]
    remedy = f"; a newer type with at least its memory is {min(newer)[1]}" if newer else ""
    return f"{_lacks(name, gpu, stack)}, which need {_NEEDED} and which the job trains with{remedy}"


def warning(name: str, gpu: Gpu, stack: Stack) -> str:
    """What to know about an answer for a GPU type that is too old for the job.

    >>> print(warning("Tesla-T4", Gpu(usable_gib=14.5), Stack()))  # doctest: +NORMALIZE_WHITESPACE
    Tesla-T4 (compute capability 7.5) has no bfloat16 and no FlashAttention-2, which this answer assumes: the job does
    not run there as it is, and takes other memory without them
    """
    return (
        f"{_lacks(name, gpu, stack)}, which this answer assumes: the job does not run there as it is, and takes other "
        f"memory without them"
    )


def _lacks(name: str, gpu: Gpu, stack: Stack) -> str:
    missing = ["no FlashAttention-2"]  # which every version's memory figures assume
    if stack.torch_dtype == "bfloat16" or stack.mixed_precision == "bf16":
        missing.insert(0, "no bfloat16")
    return f"{name} (compute capability {compute_capability(name, gpu)}) has {listed(missing)}"
