"""Whether what somebody requested fits, and what would fit in its place at the same batch of each GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import overload

import numpy as np
import pandas as pd

from autoconf.jobs.job import Job
from autoconf.jobs.queries import AVOID_OOM, NUMBER_GPUS
from autoconf.planner.domain import Columns, on_counts
from autoconf.planner.results import Recommendation
from autoconf.planner.runner import ask
from autoconf.planner.search import even_counts, smallest
from autoconf.predictor.predictor import Predictor
from autoconf.predictor.user_versions import Models


@overload
def avoid_oom(
    jobs: Job, number_gpus: int, model_version: str | None = None, models: Models = None
) -> Recommendation: ...
@overload
def avoid_oom(
    jobs: pd.DataFrame, number_gpus: None = None, model_version: str | None = None, models: Models = None
) -> pd.DataFrame: ...
def avoid_oom(
    jobs: Job | pd.DataFrame,
    number_gpus: int | None = None,
    model_version: str | None = None,
    models: Models = None,
) -> Recommendation | pd.DataFrame:
    """Keep a request for GPUs that fits, and name the next larger one that does where it does not.

    Args:
        jobs: a ``Job`` with ``per_device_train_batch_size``, or a DataFrame with its fields and ``number_gpus`` as
            columns. ``max_gpus``, 64 unless the job says otherwise, bounds what is named in place of a request.
        number_gpus: GPUs that were requested in total, >= 1, of a ``Job``.
        model_version: version for jobs that name none; the newest released one by default.
        models: folder of versions of your own; by default what the environment variable ``AUTOCONF_MODELS`` names.

    Returns:
        For a ``Job`` a ``Recommendation``: the request if it fits, whatever ``max_gpus``; else the next larger number
        of GPUs that fits, split evenly over workers. For a DataFrame the same as columns.

    Raises:
        TypeError: ``jobs`` is neither.
        ValueError: a field, a column or ``number_gpus`` is missing or can never be right.
        AutoConfError: the installation is broken.

    >>> job = Job(model_name="llama-7b", method="lora", gpu_model="L40S", tokens_per_sample=4096,
    ...           per_device_train_batch_size=1, gradient_accumulation_steps=1)
    >>> avoid_oom(job, number_gpus=9).gpus, avoid_oom(job, number_gpus=9).workers
    (5, 2)
    """
    found = ask(AVOID_OOM, Recommendation, jobs, model_version, _of_version, models, number_gpus=number_gpus)
    return replace(found, stack=jobs.stack_name()) if isinstance(jobs, Job) else found


def _of_version(predictor: Predictor, columns: Columns) -> list[Recommendation]:
    gpus = np.array(columns[NUMBER_GPUS], np.int64)
    jobs, which, problems = on_counts(predictor, columns, gpus)
    requests = replace(jobs, min_gpus=gpus[which], max_gpus=np.maximum(jobs.max_gpus, gpus[which]))
    counts, even = even_counts(predictor, requests)
    possible = (even & requests.takes(counts, predictor.domain.max_batch_size)).any(axis=1)
    for index in np.flatnonzero(~possible).tolist():
        request, per_worker = gpus[which[index]], requests.gpus_per_worker[index]
        most = min(requests.max_gpus[index], predictor.domain.max_gpus)
        problems[which[index]] = (
            f"{request} GPUs do not split evenly over workers of {per_worker}, and no larger number up to {most} does "
            f"with a batch inside the domain"
        )
    found = iter(smallest(predictor, requests.subset(np.flatnonzero(possible))))
    return [Recommendation(reason=problem) if problem else next(found) for problem in problems]
