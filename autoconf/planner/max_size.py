"""Find the largest batch, and the longest samples, that fit on given GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd

from autoconf.jobs.job import Job
from autoconf.jobs.queries import LARGEST_BATCH, LARGEST_SAMPLE, NUMBER_GPUS
from autoconf.memory.units import Booleans, Integers
from autoconf.planner.domain import JobArrays, JobColumns, on_counts
from autoconf.planner.frontier import most_tokens
from autoconf.planner.results import LargestBatch, LargestSample
from autoconf.planner.rules import host_fits
from autoconf.planner.runner import Solver, on_gpus
from autoconf.planner.search import causes
from autoconf.predictor.predictor import Predictor
from autoconf.predictor.user_versions import ModelsFolder


@on_gpus(LargestBatch)
def largest_batch(
    jobs: Job | pd.DataFrame,
    number_gpus: int | None = None,
    model_version: str | None = None,
    models: ModelsFolder = None,
) -> LargestBatch | pd.DataFrame:
    """Find the largest batch that fits on a number of GPUs.

    Args:
        jobs: a ``Job`` without a batch, or a DataFrame with its fields and ``number_gpus`` as columns.
        number_gpus: GPUs in total, >= 1; for a ``Job`` only.
        model_version: version for jobs that name none; by default the newest released one.
        models: folder of user versions; by default the one that the environment variable ``AUTOCONF_MODELS`` names.

    Returns:
        For a ``Job`` a ``LargestBatch``: samples per micro-batch on each GPU and over all GPUs, at most the largest
        batch of the version's domain. For a DataFrame its fields as columns.

    Raises:
        TypeError: ``jobs`` is neither.
        ValueError: a field, a column or ``number_gpus`` is missing or invalid, or the job has a batch.
        AutoConfError: the installation is broken.

    >>> job = Job(model_name="llama-7b", method="lora", gpu_model="NVIDIA-A100-80GB-PCIe", tokens_per_sample=8192)
    >>> largest_batch(job, number_gpus=2)
    LargestBatch(can_recommend=1, per_device_train_batch_size=9, batch_size=18, reason='', outcome='ok')
    """
    return _LARGEST_BATCH.of_either(jobs, model_version, models, number_gpus=number_gpus)


@on_gpus(LargestSample)
def largest_sample(
    jobs: Job | pd.DataFrame,
    number_gpus: int | None = None,
    model_version: str | None = None,
    models: ModelsFolder = None,
) -> LargestSample | pd.DataFrame:
    """Find the longest samples that fit on a number of GPUs.

    Args:
        jobs: a ``Job`` without ``tokens_per_sample``, or a DataFrame with its fields and ``number_gpus`` as columns.
        number_gpus: GPUs in total, >= 1; for a ``Job`` only. It must divide ``batch_size``, if the job has one.
        model_version: version for jobs that name none; by default the newest released one.
        models: folder of user versions; by default the one that the environment variable ``AUTOCONF_MODELS`` names.

    Returns:
        For a ``Job`` a ``LargestSample``: tokens of each sample, at most the longest sample of the version's domain and
        the number of the model's learned positions. For a DataFrame its fields as columns.

    Raises:
        TypeError: ``jobs`` is neither.
        ValueError: a field, a column or ``number_gpus`` is missing or invalid, or the job has
            ``tokens_per_sample``.
        AutoConfError: the installation is broken.

    >>> job = Job(model_name="llama-7b", method="lora", gpu_model="NVIDIA-A100-80GB-PCIe", batch_size=16)
    >>> largest_sample(job, number_gpus=2).tokens_per_sample
    9790
    """
    return _LARGEST_SAMPLE.of_either(jobs, model_version, models, number_gpus=number_gpus)


def _batches(predictor: Predictor, columns: JobColumns) -> list[LargestBatch]:
    count = len(columns[NUMBER_GPUS])
    one_each = {**columns, "batch_size": [None] * count, "per_device_train_batch_size": [1] * count}
    gpus = np.array(columns[NUMBER_GPUS], np.int64)
    placed = on_counts(predictor, one_each, gpus)
    jobs, gpus = placed.jobs, gpus[placed.positions]
    tokens = _within_host(predictor, jobs, gpus, most_tokens(predictor, jobs.rows, jobs.usable_gib, gpus))
    batches = np.minimum(tokens // jobs.tokens_per_sample, predictor.domain.max_batch_size // gpus)
    causes = _causes(predictor, jobs, gpus, batches == 0)
    found = [
        LargestBatch(1, each, each * total)
        if each
        else LargestBatch(reason=f"not even one sample fits: {next(causes)}", outcome="fits_nowhere")
        for each, total in zip(batches.tolist(), gpus.tolist(), strict=True)
    ]
    return placed.answers(found, LargestBatch)


def _samples(predictor: Predictor, columns: JobColumns) -> list[LargestSample]:
    one_token = {**columns, "tokens_per_sample": [1] * len(columns[NUMBER_GPUS])}
    gpus = np.array(columns[NUMBER_GPUS], np.int64)
    placed = on_counts(predictor, one_token, gpus)
    jobs, gpus = placed.jobs, gpus[placed.positions]
    tokens = _within_host(predictor, jobs, gpus, most_tokens(predictor, jobs.rows, jobs.usable_gib, gpus))
    samples = jobs.tokens_per_gpu(np.arange(len(gpus)), gpus).astype(np.int64)  # each sample has one token here
    longest = np.minimum(tokens // samples, jobs.max_tokens_per_sample)
    causes = _causes(predictor, jobs, gpus, longest == 0)
    found = [
        LargestSample(1, length)
        if length
        else LargestSample(reason=f"not even one token per sample fits: {next(causes)}", outcome="fits_nowhere")
        for length in longest.tolist()
    ]
    return placed.answers(found, LargestSample)


def _within_host(predictor: Predictor, jobs: JobArrays, gpus: Integers, tokens: Integers) -> Integers:
    """The most tokens of a GPU, up to some, for which the hosts have memory; offloaded checkpoints grow with them."""
    if jobs.host_limit_gib is None:
        return tokens
    candidates = jobs.candidates(predictor.memory, np.arange(len(gpus)), gpus)

    def fits(each: Integers) -> Booleans:
        return host_fits(replace(candidates, tokens_per_gpu=each.astype(float)))

    low, high = np.where(fits(np.zeros_like(tokens)), 0, -1), tokens
    while (open_ := low < high).any():
        middle = np.where(open_, -((low + high) // -2), low)
        fit = fits(middle)
        low, high = np.where(open_ & fit, middle, low), np.where(open_ & ~fit, middle - 1, high)
    return np.maximum(low, 0)


def _causes(predictor: Predictor, jobs: JobArrays, gpus: Integers, refused: Booleans) -> Iterator[str]:
    """The causes, in order, for refused jobs, of which not even the smallest size fits."""
    which = np.flatnonzero(refused)
    return iter(causes(jobs.candidates(predictor.memory, which, gpus[which])))


_LARGEST_BATCH = Solver(LARGEST_BATCH, LargestBatch, _batches)
_LARGEST_SAMPLE = Solver(LARGEST_SAMPLE, LargestSample, _samples)
