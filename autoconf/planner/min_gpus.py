"""Recommend the smallest number of GPUs for a job, or for a table of jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import overload

import pandas as pd

from autoconf.jobs.job import Job
from autoconf.jobs.queries import MIN_GPUS
from autoconf.planner.alternatives import remedies, remedies_of_one
from autoconf.planner.changes import OF_TABLES
from autoconf.planner.domain import JobColumns, pick
from autoconf.planner.results import Recommendation, Remedy
from autoconf.planner.runner import LayoutSolver
from autoconf.planner.search import recommendations
from autoconf.predictor.predictor import Predictor
from autoconf.predictor.user_versions import ModelsFolder


@overload
def recommend(workloads: Job, model_version: str | None = None, models: ModelsFolder = None) -> Recommendation: ...


@overload
def recommend(
    workloads: pd.DataFrame, model_version: str | None = None, models: ModelsFolder = None
) -> pd.DataFrame: ...


def recommend(
    workloads: Job | pd.DataFrame, model_version: str | None = None, models: ModelsFolder = None
) -> Recommendation | pd.DataFrame:
    """Recommend the smallest number of GPUs, for one job or for a table of jobs.

    Args:
        workloads: a ``Workload``, or a DataFrame with its fields as columns. Optional columns may be absent and their
            cells empty (None, NaN, NA, blank text). Other columns are ignored; an ``IgnoredColumnWarning`` names those
            that look like a misspelled field or like a setting of the training stack.
        model_version: predictor version for jobs that name none; by default the newest released one.
        models: folder of user versions; by default the one that the environment variable ``AUTOCONF_MODELS`` names.

    Returns:
        For a ``Workload`` a ``Recommendation``, which also names the training stack. For a DataFrame, one with the same
        index and the columns ``can_recommend`` (0 or 1), ``gpus`` (per worker) and ``workers`` (nullable integers),
        ``reason`` (text, empty with a recommendation) and ``outcome`` (``ok``, ``fits_nowhere``, ``outside_domain`` or
        ``bad_value``). A reason ends with the single changes that would make the job fit, each with the layout on
        which the changed job fits.

    Raises:
        TypeError: ``workloads`` is neither.
        ValueError: a required column is missing (either ``batch_size`` or ``per_device_train_batch_size`` is required),
            a field has two columns, the columns have several levels, ``model_version`` is invalid, or ``models`` is
            not a folder. The values in the rows of a table never raise.
        AutoConfError: the installation is broken.

    One job:

    >>> from autoconf import Workload
    >>> job = Workload(model_name="llama-7b", method="lora", gpu_model="NVIDIA-A100-80GB-PCIe",
    ...                tokens_per_sample=8192, per_device_train_batch_size=8)
    >>> recommend(job)
    Recommendation(can_recommend=1, gpus=1, workers=1, reason='', stack='reference', outcome='ok')

    The same, but with 16 samples over all GPUs:

    >>> same = {"model_name": "llama-7b", "method": "lora", "gpu_model": "NVIDIA-A100-80GB-PCIe",
    ...         "tokens_per_sample": 8192, "batch_size": 16}
    >>> recommend(Workload(**same)).gpus
    2

    The same, but trained with TRL's defaults:

    >>> found = recommend(Workload(**same, stack="trl"))
    >>> found.gpus, found.stack
    (4, 'trl')

    The same, but with full fine-tuning, on nodes of 4 GPUs:

    >>> found = recommend(Workload(**same | {"method": "full"}, gpus_per_worker=4, max_gpus=16))
    >>> found.workers, found.gpus
    (1, 4)

    The same, but on a single GPU, which is not enough:

    >>> found = recommend(Workload(**same, max_gpus=1))
    >>> found.outcome, found.gpus
    ('fits_nowhere', None)
    >>> print(found.changes[0])
    batch_size=11 would fit on 1 GPU

    The same, but as a table, in which rows may be invalid:

    >>> jobs = pd.DataFrame([same | {"batch_size": batch} for batch in (16, 64, 0)])
    >>> recommend(jobs)[["can_recommend", "gpus", "workers", "outcome"]]
       can_recommend  gpus  workers    outcome
    0              1     2        1         ok
    1              1     8        1         ok
    2              0  <NA>     <NA>  bad_value
    """
    solver = ONE_JOB if isinstance(workloads, Job) else _TABLE
    return solver.of_either(workloads, model_version, models)


def _solve_table(predictor: Predictor, columns: JobColumns) -> list[Recommendation]:
    """Recommend for valid jobs with one version; if a job does not fit, add the changes that are fast to find."""
    answers = recommendations(predictor, columns)
    without = [index for index, found in enumerate(answers) if not found.can_recommend]
    if not without:
        return answers
    for index, changes in zip(without, remedies(predictor, pick(columns, without), OF_TABLES), strict=True):
        answers[index] = _with_changes(answers[index], changes)
    return answers


def _solve_one(predictor: Predictor, columns: JobColumns) -> list[Recommendation]:
    """Recommend for one valid job with one version; if it does not fit, add all changes that would help."""
    (answer,) = recommendations(predictor, columns)
    return [answer if answer.can_recommend else _with_changes(answer, remedies_of_one(predictor, columns))]


def _with_changes(answer: Recommendation, changes: Sequence[Remedy]) -> Recommendation:
    return replace(answer, reason="; ".join([answer.reason, *map(str, changes)]), changes=tuple(changes))


ONE_JOB = LayoutSolver(MIN_GPUS, Recommendation, _solve_one, recommendations)
_TABLE = LayoutSolver(MIN_GPUS, Recommendation, _solve_table, recommendations)
