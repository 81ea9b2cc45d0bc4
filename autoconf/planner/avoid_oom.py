"""Check whether a job fits on the requested GPUs; if not, find the next larger number of GPUs on which it fits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from autoconf.jobs.job import Job
from autoconf.jobs.queries import AVOID_OOM, NUMBER_GPUS
from autoconf.planner.domain import JobArrays, JobColumns, on_counts
from autoconf.planner.results import Problem, Recommendation
from autoconf.planner.runner import LayoutSolver, on_gpus
from autoconf.planner.search import even_counts, smallest
from autoconf.predictor.predictor import Predictor
from autoconf.predictor.user_versions import ModelsFolder


@on_gpus(Recommendation)
def avoid_oom(
    jobs: Job | pd.DataFrame,
    number_gpus: int | None = None,
    model_version: str | None = None,
    models: ModelsFolder = None,
) -> Recommendation | pd.DataFrame:
    """Confirm the requested number of GPUs if the job fits, or find the next larger number on which it does.

    Args:
        jobs: a ``Job`` with ``per_device_train_batch_size``, or a DataFrame with its fields and ``number_gpus`` as
            columns. ``max_gpus`` (64 unless the job sets it) limits the larger numbers.
        number_gpus: GPUs requested in total, >= 1; for a ``Job`` only.
        model_version: version for jobs that name none; by default the newest released one.
        models: folder of user versions; by default the one that the environment variable ``AUTOCONF_MODELS`` names.

    Returns:
        For a ``Job`` a ``Recommendation``: the request if it fits, even beyond ``max_gpus``; otherwise the next larger
        number of GPUs that fits and splits evenly over workers. For a DataFrame its fields as columns.

    Raises:
        TypeError: ``jobs`` is neither.
        ValueError: a field, a column or ``number_gpus`` is missing or invalid.
        AutoConfError: the installation is broken.

    >>> job = Job(model_name="llama-7b", method="lora", gpu_model="L40S", tokens_per_sample=4096,
    ...           per_device_train_batch_size=1, gradient_accumulation_steps=1)
    >>> avoid_oom(job, number_gpus=9).gpus, avoid_oom(job, number_gpus=9).workers
    (5, 2)
    """
    return _AVOID_OOM.of_either(jobs, model_version, models, number_gpus=number_gpus)


def _solve(predictor: Predictor, columns: JobColumns) -> list[Recommendation]:
    gpus = np.array(columns[NUMBER_GPUS], np.int64)
    placed = on_counts(predictor, columns, gpus)
    requested = gpus[placed.positions]
    requests = replace(placed.jobs, min_gpus=requested, max_gpus=np.maximum(placed.jobs.max_gpus, requested))
    counts, even = even_counts(predictor, requests)
    possible = (even & requests.can_split(counts, predictor.domain.max_batch_size)).any(axis=1)
    uneven = {index: _uneven(predictor, requests, index) for index in np.flatnonzero(~possible).tolist()}
    found = smallest(predictor, requests.subset(np.flatnonzero(possible)))
    return placed.without(uneven).answers(found, Recommendation)


def _uneven(predictor: Predictor, requests: JobArrays, index: int) -> Problem:
    """The reason why no number of GPUs can be considered for a request."""
    request, per_worker = requests.min_gpus[index], requests.gpus_per_worker[index]
    most = min(requests.max_gpus[index], predictor.domain.max_gpus)
    do_not = f"do not split evenly over workers of {per_worker}"
    if requests.even_layouts[index]:
        do_not = f"are neither a power of two up to {per_worker} nor full workers of {per_worker}"
    return Problem(
        "fits_nowhere",
        f"{request} GPUs {do_not}, and no larger number up to {most} does with a batch inside the domain",
    )


_AVOID_OOM = LayoutSolver(AVOID_OOM, Recommendation, _solve)
