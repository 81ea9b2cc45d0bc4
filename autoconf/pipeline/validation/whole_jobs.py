"""Compare composed peaks with traces of whole jobs at full depth, job by job, for commands about single settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from autoconf.memory.model import gpu_memory
from autoconf.memory.store import ModelsTable
from autoconf.pipeline.tracing.first_rank import Load, load_at_once
from autoconf.pipeline.tracing.model_setup import TrainingSetup
from autoconf.pipeline.validation.composition import ComposedPeak, whole_run
from autoconf.pipeline.validation.composition import row as row_of


def compared(table: ModelsTable, job: TrainingSetup, tokens: int, load: Load = load_at_once) -> ComposedPeak:
    """The composed and the traced peak of a job with a number of tokens on each GPU."""
    memory = gpu_memory(table, job.architecture.name, job.method, job.stack, several=job.gpus > 1)
    composed = float(memory.peak_bytes(np.array([job.gpus]), np.array([tokens]))[0])
    return ComposedPeak(job, tokens, composed, whole_run(job, tokens, load).peak_bytes(tokens, job.gpus))


def compare_jobs(
    table: ModelsTable,
    jobs: Iterable[tuple[TrainingSetup, int]],
    output: Path,
    row: Callable[[ComposedPeak], dict[str, Any]] = row_of,
    load: Load = load_at_once,
) -> list[ComposedPeak]:
    """Compare jobs, print each comparison, and write the table of all.

    Args:
        table: the profiles of models.
        jobs: jobs, each with its tokens on each GPU.
        output: the CSV file.
        row: a row of the table.
        load: makes the tensors of a model, and shards it.
    """
    found = []
    for job, tokens in jobs:
        found.append(compared(table, job, tokens, load))
        print(row(found[-1]), flush=True)
    pd.DataFrame([row(each) for each in found]).to_csv(output, index=False, lineterminator="\n")
    return found
