"""How far measured throughput lies from the prediction: percentiles of held-out rows, by how near a job is to them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from autoconf.jobs.names import listed
from autoconf.jobs.stack import Stack
from autoconf.speed.roofline import Times
from autoconf.speed.work import Layout

# How near a job is to measured rows: its model, method, GPU type and stack were measured; all but the model; or not.
Near = Literal["measured", "model", "nothing"]
# A GPU that waits for the host or the network for more than this share of the time varies more.
_WAITING = 0.25


class _Typed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Bounds(_Typed):
    """Factors on the prediction: the 10th and the 90th percentile of measured over predicted throughput."""

    low: float
    high: float


class Measured(_Typed):
    """What the measured rows have."""

    models: list[str]
    gpus: list[str]
    methods: list[str]
    optimizers: list[str]
    dtypes: list[str]
    most_gpus: int
    most_tokens_per_sample: int

    def missing(self, method: str, gpu_model: str, stack: Stack, layout: Layout) -> list[str]:
        """What of a job was not measured with any model, in words."""
        sizes = {
            "GPUs": (layout.gpus, self.most_gpus),
            "tokens": (layout.tokens_per_sample, self.most_tokens_per_sample),
        }
        found = {
            f"method {method}": method not in self.methods,
            gpu_model: gpu_model not in self.gpus,
            f"optim {stack.optim}": method == "full" and stack.optim not in self.optimizers,
            f"torch_dtype {stack.torch_dtype}": stack.torch_dtype not in self.dtypes,
            f"sharding {stack.sharding}": layout.gpus > 1 and stack.sharding not in ("fsdp1", "fsdp2"),
            f"{layout.nodes} nodes": layout.nodes > 1,
            "no gradient checkpointing": stack.gradient_checkpointing == "none",
            **{f"more than {most} {what}": size > most for what, (size, most) in sizes.items()},
        }
        return [what for what, is_missing in found.items() if is_missing]


def near(measured: Measured, model: str, missing: list[str]) -> Near:
    """How near a job is to measured rows.

    Args:
        measured: what was measured.
        model: the job's model.
        missing: from ``Measured.missing``.
    """
    if missing:
        return "nothing"
    return "measured" if model in measured.models else "model"


def waits(times: Times) -> bool:
    """Whether the GPU waits for the host or the network for a good part of the time."""
    waiting = times.network + times.launches
    return waiting > _WAITING * (waiting + times.compute + times.memory)


def bounds_key(near: Near, waits: bool) -> str:
    """The key of a job's bounds on a card.

    >>> bounds_key("model", True)
    'model, waits'
    """
    return f"{near}, waits" if waits else near


def note(missing: list[str], model: str, near: Near) -> str:
    """A sentence about what was not measured; empty text if such jobs were.

    >>> note(["NVIDIA-H200", "sharding ddp"], "llama-7b", "nothing")
    'not measured: NVIDIA-H200 and sharding ddp, so the bounds are those of GPU types without measurements'
    """
    if near == "nothing":
        return f"not measured: {listed(missing)}, so the bounds are those of GPU types without measurements"
    return f"not measured: {model}, so the bounds are those of models without measurements" if near == "model" else ""
