"""Estimate the memory of a job on a given number of GPUs by part, and the probability that the job fits."""

from __future__ import annotations

import numpy as np
import pandas as pd

from autoconf.jobs.job import Job
from autoconf.jobs.queries import ESTIMATE, NUMBER_GPUS
from autoconf.memory.candidates import Candidates
from autoconf.memory.model import StackMemory
from autoconf.memory.units import GIB, Integers
from autoconf.planner.domain import JobArrays, JobColumns, on_counts
from autoconf.planner.results import Estimate
from autoconf.planner.rules import passing
from autoconf.planner.runner import Solver, on_gpus
from autoconf.planner.search import causes
from autoconf.predictor import registry
from autoconf.predictor.predictor import Predictor
from autoconf.predictor.user_versions import ModelsFolder


@on_gpus(Estimate)
def estimate(
    workloads: Job | pd.DataFrame,
    number_gpus: int | None = None,
    model_version: str | None = None,
    models: ModelsFolder = None,
) -> Estimate | pd.DataFrame:
    """Estimate the memory that jobs need on each of a number of GPUs.

    Args:
        workloads: a ``Workload``, or a DataFrame with its fields and ``number_gpus`` as columns.
        number_gpus: GPUs in total, >= 1; for a ``Workload`` only.
        model_version: version for jobs without one; by default the newest released one. Versions before 2.0.0 have no
            estimates.
        models: folder of user versions; by default the one that the environment variable ``AUTOCONF_MODELS`` names.

    Returns:
        An ``Estimate`` for a ``Workload``; for a DataFrame, one with the same index and the fields of ``Estimate`` as
        columns.

    Raises:
        TypeError: ``workloads`` is neither.
        ValueError: ``number_gpus`` is missing or not a whole number >= 1; a required column is missing or occurs twice.
        AutoConfError: the installation is broken.

    >>> from autoconf import Workload
    >>> job = Workload(model_name="llama-7b", method="lora", gpu_model="NVIDIA-A100-80GB-PCIe",
    ...                tokens_per_sample=8192, batch_size=16)
    >>> found = estimate(job, number_gpus=2)
    >>> found.fits, f"{found.peak_memory_gib:.1f} of {found.usable_memory_gib} GiB"
    (1, '47.6 of 79.1 GiB')
    >>> parts = (found.weights_gib, found.gradients_gib, found.optimizer_gib, found.gathered_gib, found.activations_gib)
    >>> abs(sum(parts) + found.fragmentation_gib + found.reserve_gib - found.needed_memory_gib) < 1e-6
    True
    """
    return _ESTIMATE.of_either(workloads, model_version, models, number_gpus=number_gpus)


def estimates(predictor: Predictor, columns: JobColumns) -> list[Estimate]:
    """Estimate valid jobs, each on its ``number_gpus``, with one version."""
    version, gpus = predictor.card.version, np.array(columns[NUMBER_GPUS], np.int64)
    if not isinstance(predictor.memory, StackMemory):
        reason = f"version {version} has no estimates; the newest is {registry.DEFAULT}"
        return [Estimate(reason=reason, outcome="outside_domain")] * len(gpus)
    placed = on_counts(predictor, columns, gpus)
    return placed.answers(
        _of_candidates(predictor, candidates_on(predictor, placed.jobs, gpus[placed.positions])), Estimate
    )


def candidates_on(predictor: Predictor, jobs: JobArrays, gpus: Integers) -> Candidates:
    """Combine jobs with one number of GPUs each.

    Args:
        predictor: a version.
        jobs: jobs inside its domain.
        gpus: the number of GPUs of each job, shape (jobs,).
    """
    return jobs.candidates(predictor.memory, np.arange(len(gpus)), gpus)


def _of_candidates(predictor: Predictor, candidates: Candidates) -> list[Estimate]:
    memory, reserve = candidates.memory, predictor.card.reserve
    assert isinstance(memory, StackMemory) and reserve is not None
    place = candidates.rows, candidates.gpus, candidates.tokens_per_gpu
    features = predictor.features(candidates)
    possible = passing(candidates) & predictor.possible(features)
    probability = np.where(possible, predictor.probabilities(features), 0.0)
    fits = possible & (probability >= predictor.card.threshold)
    peak = (memory.peak_bytes(*place) / GIB).tolist()
    why_not = iter(causes(candidates.subset(~fits)))
    outside = (candidates.usable_gib - predictor.for_pytorch_gib(candidates.usable_gib, candidates.gpus)).tolist()
    loading = (memory.loading_bytes(candidates.rows, candidates.gpus) / GIB).tolist()
    host = candidates.host_gib().tolist() if predictor.knows_host else [None] * len(peak)
    threshold, learned = predictor.card.threshold, predictor.card.fragmentation is not None
    found = []
    for index, (row, gpus, tokens) in enumerate(zip(*place, strict=True)):
        parts = memory.parts_gib(int(row), int(gpus), float(tokens), reserve)
        if loading[index] > sum(parts.values()):  # it decides, and has no margin
            parts = {**dict.fromkeys(parts, 0.0), "weights": loading[index]}
        parts["reserve"] += outside[index]
        needed, usable = sum(parts.values()), float(candidates.usable_gib[index])
        found.append(
            Estimate(
                fits=int(fits[index]),
                probability=float(probability[index]),
                peak_memory_gib=peak[index],
                peak_reserved_gib=max(peak[index], needed - parts["reserve"]) if learned else None,
                needed_memory_gib=needed,
                usable_memory_gib=usable,
                headroom_gib=usable - needed,
                weights_gib=parts["weights"],
                gradients_gib=parts["gradients"],
                optimizer_gib=parts["optimizer"],
                gathered_gib=parts["gathered"],
                activations_gib=parts["activations"],
                fragmentation_gib=parts["fragmentation"] if learned else None,
                reserve_gib=parts["reserve"],
                host_memory_gib=host[index],
                reason="" if fits[index] else f"{probability_text(probability[index], threshold)}: {next(why_not)}",
                outcome="ok" if fits[index] else "fits_nowhere",
            )
        )
    return found


def probability_text(probability: float, threshold: float) -> str:
    """A probability and the required one, with enough digits to distinguish them.

    >>> probability_text(0.5649, 0.9)
    'probability 0.56, 0.90 required'
    >>> probability_text(0.8999, 0.9)
    'probability 0.8999, 0.9000 required'
    """
    digits = next((digits for digits in (2, 3, 4) if round(probability, digits) != threshold), 6)
    if probability >= threshold:
        digits = 2
    return f"probability {probability:.{digits}f}, {threshold:.{digits}f} required"


_ESTIMATE = Solver(ESTIMATE, Estimate, estimates)
