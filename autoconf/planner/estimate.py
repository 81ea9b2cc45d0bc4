"""What a job holds on a given number of GPUs: whether it fits, how likely that is, and where the memory goes.

The same road as ``recommend``, which ends before the search for the smallest number of GPUs.
"""

from __future__ import annotations

from typing import overload

import numpy as np
import pandas as pd

from autoconf.jobs.job import Job
from autoconf.jobs.queries import ESTIMATE, NUMBER_GPUS
from autoconf.memory.candidates import Candidates
from autoconf.memory.model import StackMemory
from autoconf.memory.units import GIB, Integers
from autoconf.planner.domain import Columns, on_counts
from autoconf.planner.results import Estimate
from autoconf.planner.rules import passing
from autoconf.planner.runner import ask
from autoconf.planner.search import decide
from autoconf.predictor import registry
from autoconf.predictor.predictor import Predictor
from autoconf.predictor.user_versions import Models


@overload
def estimate(workloads: Job, number_gpus: int, model_version: str | None = None, models: Models = None) -> Estimate: ...
@overload
def estimate(
    workloads: pd.DataFrame, number_gpus: None = None, model_version: str | None = None, models: Models = None
) -> pd.DataFrame: ...
def estimate(
    workloads: Job | pd.DataFrame,
    number_gpus: int | None = None,
    model_version: str | None = None,
    models: Models = None,
) -> Estimate | pd.DataFrame:
    """Say what jobs hold on each of a number of GPUs.

    Args:
        workloads: a ``Workload``, or a DataFrame with its fields and ``number_gpus`` as columns.
        number_gpus: GPUs in total, >= 1, of a ``Workload``.
        model_version: version for jobs that name none; the newest released one by default. Versions before 2.0.0 have
            no estimates.
        models: folder of versions of your own; by default what the environment variable ``AUTOCONF_MODELS`` names.

    Returns:
        An ``Estimate`` for a ``Workload``; for a DataFrame, one with the same index and the fields of ``Estimate`` as
        columns.

    Raises:
        TypeError: ``workloads`` is neither.
        ValueError: ``number_gpus`` is missing or no whole number >= 1; a required column is missing or there twice.
        AutoConfError: the installation is broken.

    >>> from autoconf import Workload
    >>> job = Workload(model_name="llama-7b", method="lora", gpu_model="NVIDIA-A100-80GB-PCIe",
    ...                tokens_per_sample=8192, batch_size=16)
    >>> found = estimate(job, number_gpus=2)
    >>> found.fits, f"{found.peak_memory_gib:.1f} of {found.usable_memory_gib} GiB"
    (1, '47.6 of 79.15 GiB')
    >>> parts = (found.weights_gib, found.gradients_gib, found.optimizer_gib, found.gathered_gib, found.activations_gib)
    >>> abs(sum(parts) + found.reserve_gib - found.needed_memory_gib) < 1e-6
    True
    """
    return ask(ESTIMATE, Estimate, workloads, model_version, _of_version, models, number_gpus=number_gpus)


def _of_version(predictor: Predictor, columns: Columns) -> list[Estimate]:
    version, gpus = predictor.card.version, np.array(columns[NUMBER_GPUS], np.int64)
    if not isinstance(predictor.memory, StackMemory):
        return [Estimate(reason=f"version {version} has no estimates; the newest is {registry.DEFAULT}")] * len(gpus)
    candidates, problems = placed(predictor, columns, gpus)
    answers = iter(_of_candidates(predictor, candidates))
    return [Estimate(reason=problem) if problem else next(answers) for problem in problems]


def placed(predictor: Predictor, columns: Columns, gpus: Integers) -> tuple[Candidates, list[str]]:
    """Jobs on the numbers of GPUs that are asked for.

    Args:
        predictor: a version.
        columns: valid jobs.
        gpus: on how many GPUs each of them runs, >= 1.

    Returns:
        The jobs that lie inside the version's domain and can run so, and for each of all jobs why it does not; empty
        text if it does.
    """
    jobs, which, problems = on_counts(predictor, columns, gpus)
    count = gpus[which]
    tokens = jobs.tokens_per_gpu(np.arange(len(which)), count)
    return Candidates(predictor.memory, jobs.rows, count, tokens, jobs.usable_gib), problems


def _of_candidates(predictor: Predictor, candidates: Candidates) -> list[Estimate]:
    memory, reserve = candidates.memory, predictor.card.reserve
    assert isinstance(memory, StackMemory) and reserve is not None
    place = candidates.rows, candidates.gpus, candidates.tokens_per_gpu
    fits = decide(predictor, candidates)
    probability = np.where(passing(candidates), predictor.probabilities(predictor.features(candidates)), 0.0)
    peak = memory.peak_bytes(*place) / GIB
    found = []
    for index, (row, gpus, tokens) in enumerate(zip(*place, strict=True)):
        parts = memory.parts_gib(int(row), int(gpus), float(tokens), reserve)
        needed, usable = sum(parts.values()), float(candidates.usable_gib[index])
        found.append(
            Estimate(
                fits=int(fits[index]),
                probability=float(probability[index]),
                peak_memory_gib=float(peak[index]),
                needed_memory_gib=needed,
                usable_memory_gib=usable,
                headroom_gib=usable - needed,
                weights_gib=parts["weights"],
                gradients_gib=parts["gradients"],
                optimizer_gib=parts["optimizer"],
                gathered_gib=parts["gathered"],
                activations_gib=parts["activations"],
                reserve_gib=parts["reserve"],
            )
        )
    return found
