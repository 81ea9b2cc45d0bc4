"""The profile of one model, traced on demand, because tracing the whole profile takes a minute."""

from __future__ import annotations

from functools import cache

import numpy as np

from autoconf.memory.model import gpu_memory
from autoconf.memory.profile import IN_ORDER, HeadWay, LayerWay, Trainable
from autoconf.pipeline.catalog import Architecture
from autoconf.pipeline.tracing import trace_model
from autoconf.pipeline.tracing.extrapolate import head_moments
from autoconf.pipeline.tracing.ledger import rank_for, trace
from autoconf.pipeline.tracing.model_setup import TrainingSetup
from autoconf.pipeline.tracing.ways import all_ways


class OnDemand:
    """A replacement for a ``ModelsTable`` with one model."""

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        self.ways = all_ways(architecture.kinds)
        self.short = trace_model.short_stack(architecture)
        self.rank = rank_for(architecture, self.short)
        self._moments = cache(self._traced)

    def _traced(self, way: LayerWay | HeadWay) -> np.ndarray:
        if isinstance(way, LayerWay):
            return trace_model.traced_layers(self.architecture, way, self.rank)
        storages = trace(trace_model.head_job(self.architecture, way), self.short, self.rank)
        return np.array(head_moments(storages, self.short, self.rank))

    def moments(self, model: str, way: LayerWay | HeadWay) -> np.ndarray | None:
        absent = isinstance(way, LayerWay) and way.lora_targets.endswith(IN_ORDER) and way not in self.ways
        return None if absent else self._moments(way)

    def trainable(self, model: str, method: str, targets: str) -> Trainable:
        return trace_model.units(self.architecture, method, targets)

    def problem(self, model: str, key: object) -> str:
        return ""

    def peak_bytes(self, job: TrainingSetup, tokens: int) -> float:
        """The composed peak of a job of this model."""
        memory = gpu_memory(self, job.architecture.name, job.method, job.stack, several=job.gpus > 1)
        return float(memory.peak_bytes(np.array([job.gpus]), np.array([tokens]))[0])
