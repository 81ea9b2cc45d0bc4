"""What a job holds on a given number of GPUs: whether it fits, how likely that is, and where the memory goes.

The same road as ``recommend``, which ends before the search for the smallest number of GPUs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, overload

import numpy as np
import pandas as pd

from autoconf import versions
from autoconf.any_stack import StackMemory
from autoconf.memory import GIB, Integers
from autoconf.own_versions import Models
from autoconf.predictors import Predictor
from autoconf.recommender import by_version, checked_table, valid_jobs
from autoconf.rules import Candidates, passing
from autoconf.search import Columns, decide, inside, pick
from autoconf.workload import Workload, whole_number

NUMBER_GPUS = "number_gpus"


@dataclass(frozen=True)
class Estimate:
    """Memory of each GPU of a job, in GiB.

    The parts are those of the moment that decides, and add up to ``needed_memory_gib``: a job fits where that does not
    exceed usable memory, but for what the predictor's threshold asks beside. All are None where ``reason`` says why.
    """

    fits: int | None = None  # 1 or 0
    probability: float | None = None  # of fitting; 0 where a rule forbids it
    peak_memory_gib: float | None = (
        None  # most that is allocated at a time, as torch.cuda.max_memory_allocated counts it
    )
    needed_memory_gib: float | None = None
    usable_memory_gib: float | None = None  # of the GPU, as CUDA reports it
    weights_gib: float | None = None
    gradients_gib: float | None = None
    optimizer_gib: float | None = None
    gathered_gib: float | None = None  # parameters that FSDP has whole at that moment
    activations_gib: float | None = None
    reserve_gib: float | None = None  # CUDA context, workspaces, NCCL, fragmentation
    reason: str = ""


@overload
def estimate(
    workloads: Workload, number_gpus: int, model_version: str | None = None, models: Models = None
) -> Estimate: ...
@overload
def estimate(
    workloads: pd.DataFrame, number_gpus: None = None, model_version: str | None = None, models: Models = None
) -> pd.DataFrame: ...
def estimate(
    workloads: Workload | pd.DataFrame,
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

    >>> job = Workload(model_name="llama-7b", method="lora", gpu_model="NVIDIA-A100-80GB-PCIe",
    ...                tokens_per_sample=8192, batch_size=16)
    >>> found = estimate(job, number_gpus=2)
    >>> found.fits, f"{found.peak_memory_gib:.1f} of {found.usable_memory_gib} GiB"
    (1, '47.6 of 79.15 GiB')
    >>> parts = (found.weights_gib, found.gradients_gib, found.optimizer_gib, found.gathered_gib, found.activations_gib)
    >>> abs(sum(parts) + found.reserve_gib - found.needed_memory_gib) < 1e-6
    True
    """
    if isinstance(workloads, Workload):
        count = whole_number(NUMBER_GPUS, number_gpus)
        columns = {field: [getattr(workloads, field)] for field in Workload.model_fields}
        return _estimates(columns, [count], model_version, models)[0]
    if number_gpus is not None:
        raise ValueError(f"{NUMBER_GPUS}: is a column of a table of jobs")
    workloads = checked_table(workloads, NUMBER_GPUS)
    columns = {field: workloads[field].tolist() for field in Workload.model_fields if field in workloads}
    found = _estimates(columns, workloads[NUMBER_GPUS].tolist(), model_version, models)
    table = pd.DataFrame([asdict(one) for one in found], columns=[field.name for field in fields(Estimate)])
    return table.astype({"fits": "Int64"}).set_axis(workloads.index)


def _estimates(
    columns: dict[str, list[Any]], counts: list[Any], default_version: str | None, models: Models
) -> list[Estimate]:
    jobs, problems = valid_jobs(columns, default_version, models)
    gpus = [0] * len(counts)
    for index, count in enumerate(counts):
        try:
            gpus[index] = whole_number(NUMBER_GPUS, count)
        except ValueError as error:
            problems[index] = f"{problems[index]}; {error}" if problems[index] else str(error)
    found = [Estimate(reason=problem) for problem in problems]
    for version, indices in by_version(jobs, problems).items():
        some = _of_version(versions.load(version, models), pick(jobs, indices), np.array([gpus[i] for i in indices]))
        for index, one in zip(indices, some, strict=True):
            found[index] = one
    return found


def _of_version(predictor: Predictor, columns: Columns, gpus: np.ndarray) -> list[Estimate]:
    version = predictor.card.version
    if not isinstance(predictor.memory, StackMemory):
        return [Estimate(reason=f"version {version} has no estimates; the newest is {versions.DEFAULT}")] * len(gpus)
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
    version = predictor.card.version
    jobs, outside = inside(predictor, columns)
    known = np.flatnonzero([not problem for problem in outside])
    problems = list(outside)
    for job, index in enumerate(known):
        count, batch_size = gpus[index], jobs.batch_size[job]
        if count > predictor.domain.max_gpus:
            most = predictor.domain.max_gpus
            problems[index] = f"{NUMBER_GPUS} {count} is beyond the domain of version {version}, which ends at {most}"
        elif not jobs.on_each[job] and batch_size % count:
            problems[index] = f"{NUMBER_GPUS} {count} does not divide batch_size {batch_size}"
    which = np.array([job for job, index in enumerate(known) if not problems[index]], np.int64)
    count = gpus[known[which]]
    tokens = jobs.tokens_per_gpu(which, count)
    return Candidates(predictor.memory, jobs.rows[which], count, tokens, jobs.usable_gib[which]), problems


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
        found.append(
            Estimate(
                fits=int(fits[index]),
                probability=float(probability[index]),
                peak_memory_gib=float(peak[index]),
                needed_memory_gib=sum(parts.values()),
                usable_memory_gib=float(candidates.usable_gib[index]),
                weights_gib=parts["weights"],
                gradients_gib=parts["gradients"],
                optimizer_gib=parts["optimizer"],
                gathered_gib=parts["gathered"],
                activations_gib=parts["activations"],
                reserve_gib=parts["reserve"],
            )
        )
    return found
