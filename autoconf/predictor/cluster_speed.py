"""What measured runs say about speed: the jobs that were measured, and how a user's cluster differs."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


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

    def also(self, other: Measured) -> Measured:
        """What either of two tables of rows has."""
        fields = type(self).model_fields
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in fields}
        return Measured.model_validate(
            {name: sorted({*a, *b}) if isinstance(a, list) else max(a, b) for name, (a, b) in pairs.items()}
        )


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
