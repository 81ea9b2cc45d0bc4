"""Features of the learned correction: sizes that exist for every model, and the speeds of the GPU.

Every feature that grows with the batch, the number of GPUs or a speed of the GPU may only raise the speed, so that the
orderings of the physics hold for the corrected speed as well.
"""

from __future__ import annotations

from math import log

from autoconf.jobs.stack import Stack
from autoconf.speed.gpu_speed import GpuSpeed
from autoconf.speed.shapes import Shapes
from autoconf.speed.work import Layout, Work

# Each feature with the direction in which it may move the speed; 0 for either. Sizes and speeds are logarithms.
MONOTONE = {
    "tokens": 1,  # of a micro-batch on each GPU
    "tokens_per_launch": 1,  # kernels that the host launches
    "tokens_per_expert": 1,
    "gpus": 1,
    "link": 1,
    "memory": 1,
    "peak": 1,
    "full": 0,  # all parameters train
    "quantized": 0,
    "fused_norms": 0,
    "fused_adapters": 0,
    "fused_loss": 0,
    "chunked_loss": 0,
    "mixed_precision": 0,
    "accumulation": 0,
    "width": 0,
    "tokens_per_sample": 0,
}


def features(shapes: Shapes, method: str, stack: Stack, gpu: GpuSpeed, layout: Layout, work: Work) -> dict[str, float]:
    """The features of a job on a layout: the keys of ``MONOTONE``, in order."""
    return {
        "tokens": log(work.tokens),
        "tokens_per_launch": log(work.tokens / work.launches),
        "tokens_per_expert": log(work.tokens * shapes.chosen / shapes.experts),
        "gpus": log(layout.gpus),
        "link": log(gpu.link_bytes(layout.gpus) / 1e9),
        "memory": log(gpu.memory),
        "peak": log(gpu.flops(work.dtype) / 1e12),
        "full": float(method == "full"),
        "quantized": float(stack.quantization != "none"),
        "fused_norms": float("fast_rms_layernorm" in stack.kernels),
        "fused_adapters": float("fused_lora" in stack.kernels),
        "fused_loss": float("fast_loss" in stack.kernels),
        "chunked_loss": float(stack.loss != "full"),
        "mixed_precision": float(stack.mixed_precision != "no"),
        "accumulation": float(layout.steps > 1),
        "width": log(shapes.hidden),
        "tokens_per_sample": log(layout.tokens_per_sample),
    }
