"""How far measured throughput lies from the prediction: percentiles of held-out rows, by how near a job is to them."""

from __future__ import annotations

from math import sqrt
from typing import Literal

from autoconf.jobs.names import listed
from autoconf.jobs.stack import Stack
from autoconf.predictor.cluster_speed import SETTINGS, Bounds, Measured
from autoconf.speed.roofline import Times
from autoconf.speed.work import Layout

# How near a job is to measured rows: its model, method, GPU type and stack were measured; all but the model; or not.
Near = Literal["measured", "model", "nothing"]
# A GPU that waits for the host or the network for more than this share of the time varies more.
_WAITING = 0.25


def missing(measured: Measured, method: str, gpu_model: str, stack: Stack, layout: Layout) -> list[str]:
    """What of a job was not measured with any model, in words."""
    sizes = {
        "GPUs": (layout.gpus if layout.nodes == 1 else 1, measured.most_gpus),
        "tokens": (layout.tokens_per_sample, measured.most_tokens_per_sample),
    }
    found = {
        f"method {method}": method not in measured.methods,
        gpu_model: gpu_model not in measured.gpus,
        f"optim {stack.optim}": method == "full" and stack.optim not in measured.optimizers,
        f"gradient_sync {stack.gradient_sync}": (
            layout.gpus > 1 and layout.steps > 1 and stack.gradient_sync not in measured.gradient_syncs
        ),
        f"sharding {stack.sharding}": layout.gpus > 1 and stack.sharding not in measured.shardings,
        f"sharding {stack.fsdp_strategy}": layout.gpus > 1 and stack.fsdp_strategy != "full_shard",
        f"{layout.nodes} nodes": layout.nodes > measured.most_nodes,
        **{_words(name, stack): getattr(stack, name) not in getattr(measured, of) for name, of in SETTINGS.items()},
        **{f"more than {most} {what}": size > most for what, (size, most) in sizes.items()},
    }
    return [what for what, is_missing in found.items() if is_missing]


def _words(setting: str, stack: Stack) -> str:
    without_checkpoints = setting == "gradient_checkpointing" and stack.gradient_checkpointing == "none"
    return "no gradient checkpointing" if without_checkpoints else f"{setting} {getattr(stack, setting)}"


def near(measured: Measured, model: str, missing: list[str]) -> Near:
    """How near a job is to measured rows.

    Args:
        measured: what was measured.
        model: the job's model.
        missing: from ``missing``.
    """
    if missing:
        return "nothing"
    return "measured" if model in measured.models else "model"


def waits(times: Times) -> bool:
    """Whether the GPU waits for the host, its memory or the network for a good part of the time."""
    waiting = times.network + times.launches + times.offload
    return waiting > _WAITING * (waiting + times.compute + times.memory)


def bounds_key(near: Near, waits: bool) -> str:
    """The key of a job's bounds on a card.

    >>> bounds_key("model", True)
    'model, waits'
    """
    return f"{near}, waits" if waits else near


def widened(bounds: Bounds, count: int) -> Bounds:
    """The bounds of a job of which several things were not measured.

    The bounds of what was not measured are those of one such thing, a GPU type. The deviations of several are
    independent, so their logarithms add up as standard deviations do.

    >>> widened(Bounds(low=0.8, high=1.25), 4)
    Bounds(low=0.64, high=1.5625)
    """
    power = sqrt(max(count, 1))
    return Bounds(low=round(bounds.low**power, 4), high=round(bounds.high**power, 4))


def note(missing: list[str], model: str, near: Near) -> str:
    """A sentence about what was not measured; empty text if such jobs were.

    >>> note(["NVIDIA-H200", "sharding ddp"], "llama-7b", "nothing")
    'not measured: NVIDIA-H200 and sharding ddp, so the bounds are wide, the wider the more was not measured'
    """
    if near == "nothing":
        return f"not measured: {listed(missing)}, so the bounds are wide, the wider the more was not measured"
    return f"not measured: {model}, so the bounds are those of models without measurements" if near == "model" else ""
