"""Summarize the memory needs of a user model, with the newest version's predictor and the model's own profile."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from autoconf.jobs.job import OPTIONAL
from autoconf.jobs.presets import SETTINGS, training_stack
from autoconf.memory.store import ModelsTable
from autoconf.memory.units import GIB, Unsupported
from autoconf.pipeline.tracing.trace_file import read_trace
from autoconf.planner.search import recommendations
from autoconf.predictor import registry
from autoconf.predictor.predictor import Predictor, memory_of

STACKS = ("reference", "trl")
TOKENS = (2_048, 8_192)
BATCH_SIZE, MAX_GPUS = 16, 64
_LONG = 131_072  # tokens of micro-batches at which tokens decide the peak
_GPUS = 8


def summary(path: str | Path) -> dict[str, Any]:
    """The parameters of a model, its memory per token, and the smallest layouts for a few jobs.

    Args:
        path: a file of ``ado-autoconf trace``.

    Returns:
        ``model_name``, ``parameters``, ``gib_per_1000_tokens`` by stack and method, ``layouts`` (jobs with their
        answers).

    Raises:
        BadInput: it is not such a file.
        AutoConfError: the installation is broken.
    """
    architecture, _ = read_trace(path)
    newest = registry.load(registry.DEFAULT)
    memory = memory_of(newest.card, ModelsTable.read(Path(path)))
    predictor = newest.about({architecture.name: architecture.in_domain()}, memory)
    methods = predictor.domain.methods
    return {
        "model_name": architecture.name,
        "parameters": architecture.parameters,
        "lora_targets": architecture.lora_targets,
        "gib_per_1000_tokens": {
            stack: {method: _gib_per_1000_tokens(predictor, architecture.name, method, stack) for method in methods}
            for stack in STACKS
        },
        "layouts": _layouts(predictor, architecture.name),
    }


def _gib_per_1000_tokens(predictor: Predictor, model: str, method: str, stack: str) -> float | None:
    """GiB that each further 1,000 tokens of a long micro-batch add to the peak of each of several GPUs."""
    try:
        row = predictor.row(model, method, training_stack(method, True, stack, *[None] * len(SETTINGS)))
    except Unsupported:
        return None
    tokens = np.array([_LONG, _LONG + 1_000])
    peaks = predictor.memory.peak_bytes(np.array([row, row]), np.array([_GPUS, _GPUS]), tokens) / GIB
    return round(float(peaks[1] - peaks[0]), 4)


def _layouts(predictor: Predictor, model: str) -> list[dict[str, Any]]:
    fields = ("stack", "gpu_model", "method", "tokens_per_sample")
    jobs = list(product(STACKS, predictor.domain.gpus, predictor.domain.methods, TOKENS))
    columns: dict[str, list[Any]] = {
        field: list(values) for field, values in zip(fields, zip(*jobs, strict=True), strict=True)
    }
    same = {"model_name": model, "batch_size": BATCH_SIZE, "max_gpus": MAX_GPUS}
    columns |= {field: [value] * len(jobs) for field, value in same.items()}
    steps = OPTIONAL["gradient_accumulation_steps"]
    return [
        {**same, "gradient_accumulation_steps": steps, **dict(zip(fields, job, strict=True)),
         "can_recommend": found.can_recommend, "gpus": found.gpus, "workers": found.workers, "reason": found.reason}
        for job, found in zip(jobs, recommendations(predictor, columns), strict=True)
    ]  # fmt: skip
