"""How large a job may be on given GPUs: the largest batch, and the longest samples."""

from __future__ import annotations

from typing import overload

import numpy as np
import pandas as pd

from autoconf.jobs.job import Job
from autoconf.jobs.queries import LARGEST_BATCH, LARGEST_SAMPLE, NUMBER_GPUS
from autoconf.memory.candidates import Candidates
from autoconf.memory.units import Integers
from autoconf.planner.domain import Columns, Jobs, on_counts
from autoconf.planner.frontier import most_tokens
from autoconf.planner.results import LargestBatch, LargestSample
from autoconf.planner.runner import ask
from autoconf.planner.search import causes
from autoconf.predictor.predictor import Predictor
from autoconf.predictor.user_versions import Models


@overload
def largest_batch(
    jobs: Job, number_gpus: int, model_version: str | None = None, models: Models = None
) -> LargestBatch: ...
@overload
def largest_batch(
    jobs: pd.DataFrame, number_gpus: None = None, model_version: str | None = None, models: Models = None
) -> pd.DataFrame: ...
def largest_batch(
    jobs: Job | pd.DataFrame,
    number_gpus: int | None = None,
    model_version: str | None = None,
    models: Models = None,
) -> LargestBatch | pd.DataFrame:
    """Find the largest batch that fits on a number of GPUs.

    Args:
        jobs: a ``Job`` without a batch, or a DataFrame with its fields and ``number_gpus`` as columns.
        number_gpus: GPUs in total, >= 1, of a ``Job``.
        model_version: version for jobs that name none; the newest released one by default.
        models: folder of versions of your own; by default what the environment variable ``AUTOCONF_MODELS`` names.

    Returns:
        For a ``Job`` a ``LargestBatch``: samples on each GPU, and over all of them, which is at most the largest batch
        of the version's domain. For a DataFrame its fields as columns.

    Raises:
        TypeError: ``jobs`` is neither.
        ValueError: a field, a column or ``number_gpus`` is missing, can never be right, or is a batch.
        AutoConfError: the installation is broken.

    >>> job = Job(model_name="llama-7b", method="lora", gpu_model="NVIDIA-A100-80GB-PCIe", tokens_per_sample=8192)
    >>> largest_batch(job, number_gpus=2)
    LargestBatch(can_recommend=1, per_device_train_batch_size=10, batch_size=20, reason='')
    """
    return ask(LARGEST_BATCH, LargestBatch, jobs, model_version, _batches, models, number_gpus=number_gpus)


@overload
def largest_sample(
    jobs: Job, number_gpus: int, model_version: str | None = None, models: Models = None
) -> LargestSample: ...
@overload
def largest_sample(
    jobs: pd.DataFrame, number_gpus: None = None, model_version: str | None = None, models: Models = None
) -> pd.DataFrame: ...
def largest_sample(
    jobs: Job | pd.DataFrame,
    number_gpus: int | None = None,
    model_version: str | None = None,
    models: Models = None,
) -> LargestSample | pd.DataFrame:
    """Find the longest samples that fit on a number of GPUs.

    Args:
        jobs: a ``Job`` without ``tokens_per_sample``, or a DataFrame with its fields and ``number_gpus`` as columns.
        number_gpus: GPUs in total, >= 1, of a ``Job``; it divides a ``batch_size``.
        model_version: version for jobs that name none; the newest released one by default.
        models: folder of versions of your own; by default what the environment variable ``AUTOCONF_MODELS`` names.

    Returns:
        For a ``Job`` a ``LargestSample``: tokens of each sample, at most as many as the version's domain or the model's
        learned positions have. For a DataFrame its fields as columns.

    Raises:
        TypeError: ``jobs`` is neither.
        ValueError: a field, a column or ``number_gpus`` is missing, can never be right, or is ``tokens_per_sample``.
        AutoConfError: the installation is broken.

    >>> job = Job(model_name="llama-7b", method="lora", gpu_model="NVIDIA-A100-80GB-PCIe", batch_size=16)
    >>> largest_sample(job, number_gpus=2).tokens_per_sample
    11188
    """
    return ask(LARGEST_SAMPLE, LargestSample, jobs, model_version, _samples, models, number_gpus=number_gpus)


def _batches(predictor: Predictor, columns: Columns) -> list[LargestBatch]:
    one_each = {**columns, "batch_size": [None] * len(columns[NUMBER_GPUS])}
    one_each["per_device_train_batch_size"] = [1] * len(columns[NUMBER_GPUS])
    gpus = np.array(columns[NUMBER_GPUS], np.int64)
    jobs, which, problems = on_counts(predictor, one_each, gpus)
    tokens = most_tokens(predictor, jobs.rows, jobs.usable_gib, gpus[which])
    batches = np.minimum(tokens // jobs.tokens_per_sample, predictor.domain.max_batch_size // gpus[which])
    _explain(predictor, jobs, gpus, which, batches, "a sample", problems)
    found = iter(batches[batches > 0].tolist())
    return [
        LargestBatch(reason=problem) if problem else LargestBatch(1, each := next(found), each * int(count))
        for problem, count in zip(problems, gpus, strict=True)
    ]


def _samples(predictor: Predictor, columns: Columns) -> list[LargestSample]:
    one_token = {**columns, "tokens_per_sample": [1] * len(columns[NUMBER_GPUS])}
    gpus = np.array(columns[NUMBER_GPUS], np.int64)
    jobs, which, problems = on_counts(predictor, one_token, gpus)
    tokens = most_tokens(predictor, jobs.rows, jobs.usable_gib, gpus[which])
    samples = jobs.tokens_per_gpu(np.arange(len(which)), gpus[which]).astype(np.int64)  # of one token each
    longest = np.minimum(tokens // samples, jobs.max_tokens_per_sample)
    _explain(predictor, jobs, gpus, which, longest, "a token in each sample", problems)
    found = iter(longest[longest > 0].tolist())
    return [LargestSample(reason=problem) if problem else LargestSample(1, next(found)) for problem in problems]


def _explain(
    predictor: Predictor, jobs: Jobs, gpus: Integers, which: Integers, largest: Integers, least: str,
    problems: list[str],
) -> None:  # fmt: skip
    """Say of jobs of which not even the smallest fits what keeps it from fitting."""
    none = np.flatnonzero(largest == 0)
    counts = gpus[which[none]]
    smallest = Candidates(
        predictor.memory, jobs.rows[none], counts, jobs.tokens_per_gpu(none, counts), jobs.usable_gib[none]
    )
    for index, cause in zip(which[none], causes(smallest), strict=True):
        problems[index] = f"not even {least} fits: {cause}"
