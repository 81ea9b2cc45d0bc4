"""What measured runs say about speed: the jobs that were measured, and how a user's cluster differs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict

from autoconf.jobs.stack import Stack


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
    most_gpus: int  # on one node
    most_tokens_per_sample: int
    shardings: list[str] = ["fsdp1", "fsdp2"]
    checkpointing: list[str] = ["reentrant", "non-reentrant"]
    offloads: list[str] = ["none"]
    most_nodes: int = 1
    quantizations: list[str] = ["none", "nf4", "gptq"]
    mixed_precisions: list[str] = ["no", "bf16"]
    objectives: list[str] = ["sft"]
    gradient_syncs: list[str] = ["last"]
    losses: list[str] = ["full", "chunked"]

    def also(self, other: Measured) -> Measured:
        """What either of two tables of rows has."""
        fields = type(self).model_fields
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in fields}
        return Measured.model_validate(
            {name: sorted({*a, *b}) if isinstance(a, list) else max(a, b) for name, (a, b) in pairs.items()}
        )


# Settings of a stack, each with the field of ``Measured`` that has the values that were measured.
SETTINGS = {
    "torch_dtype": "dtypes",
    "mixed_precision": "mixed_precisions",
    "quantization": "quantizations",
    "gradient_checkpointing": "checkpointing",
    "loss": "losses",
    "objective": "objectives",
    "offload": "offloads",
}


def settings_of(stacks: Iterable[Stack]) -> dict[str, Any]:
    """The values of ``SETTINGS`` in some stacks, by field of ``Measured``.

    >>> settings_of([Stack(), Stack(torch_dtype="float16")])["dtypes"]
    ['bfloat16', 'float16']
    """
    some = list(stacks)
    return {field: sorted({getattr(stack, name) for stack in some}) for name, field in SETTINGS.items()}


class ClusterSpeed(_Typed):
    """How fast a user's cluster is, next to the released throughput predictor.

    Attributes:
        one: factor on tokens per second on one GPU, > 0.
        several: factor on several GPUs of one node.
        nodes: factor on several nodes.
        bounds: of the cluster's runs, around the prediction with the factors.
        measured: what the cluster's runs have.
        rows: number of runs.
    """

    one: float
    several: float
    nodes: float
    bounds: Bounds
    measured: Measured
    rows: int

    def factor(self, gpus: int, nodes: int) -> float:
        """The factor on tokens per second of a layout."""
        return self.nodes if nodes > 1 else self.several if gpus > 1 else self.one
