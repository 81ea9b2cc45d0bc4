"""Recommend the smallest number of GPUs for a job, or for a table of jobs."""

from __future__ import annotations

from dataclasses import replace
from typing import overload

import pandas as pd

from autoconf.jobs.job import Job
from autoconf.jobs.queries import MIN_GPUS
from autoconf.planner.alternatives import CHANGES, remedies
from autoconf.planner.domain import Columns, pick
from autoconf.planner.results import Recommendation
from autoconf.planner.runner import (
    ask,
)
from autoconf.planner.search import answer
from autoconf.predictor.predictor import Predictor
from autoconf.predictor.user_versions import Models


@overload
def recommend(workloads: Job, model_version: str | None = None, models: Models = None) -> Recommendation: ...


@overload
def recommend(workloads: pd.DataFrame, model_version: str | None = None, models: Models = None) -> pd.DataFrame: ...


def recommend(
    workloads: Job | pd.DataFrame, model_version: str | None = None, models: Models = None
) -> Recommendation | pd.DataFrame:
    """Recommend the smallest number of GPUs, for one job or for a table of jobs.

    Args:
        workloads: a ``Workload``, or a DataFrame with its fields as columns. Optional columns may be absent and their
            cells empty (None, NaN, NA, blank text); other columns are ignored, with an ``IgnoredColumnWarning`` for
            those that look like a field misspelt or like a setting of the training stack.
        model_version: predictor version for jobs that name none; the newest released one by default.
        models: folder of versions of your own; by default what the environment variable ``AUTOCONF_MODELS`` names.

    Returns:
        A ``Recommendation`` for a ``Workload``; it names the training stack that it is for. For a DataFrame, one with
        the same index and the columns ``can_recommend`` (0 or 1), ``gpus`` (per worker) and ``workers`` (nullable
        integers) and ``reason`` (text, empty when recommended). A row with a value that can never be right gets that
        reason. With "no" go the single changes of the job that would get it a recommendation, and what it then takes.

    Raises:
        TypeError: ``workloads`` is neither.
        ValueError: a required column is missing (``batch_size`` and ``per_device_train_batch_size`` both), a column of
            the job is there twice, the columns have several levels, ``model_version`` cannot be one, or ``models`` is
            no folder.
        AutoConfError: the installation is broken.

    >>> from autoconf import Workload
    >>> job = Workload(model_name="llama-7b", method="lora", gpu_model="NVIDIA-A100-80GB-PCIe",
    ...                tokens_per_sample=8192, batch_size=16)
    >>> recommend(job)
    Recommendation(can_recommend=1, gpus=2, workers=1, reason='', stack='reference')
    >>> recommend(pd.DataFrame([job.model_dump()])).drop(columns="reason")
       can_recommend  gpus  workers
    0              1     2        1
    """
    found = ask(MIN_GPUS, Recommendation, workloads, model_version, _recommend, models)
    return replace(found, stack=workloads.stack_name()) if isinstance(workloads, Job) else found


def _recommend(predictor: Predictor, columns: Columns) -> list[Recommendation]:
    """Answer valid jobs by one version; with "no" go the changes that would help."""
    answers = answer(predictor, columns)
    without = [index for index, found in enumerate(answers) if not found.can_recommend]
    if not without:
        return answers
    for index, changes in zip(without, remedies(predictor, pick(columns, without), CHANGES), strict=True):
        sentences = [answers[index].reason, *map(str, changes)]
        answers[index] = Recommendation(0, reason="; ".join(sentences), changes=tuple(changes))
    return answers
