"""Explain a recommendation: memory on the recommended GPUs and on fewer, and single changes that would help."""

from __future__ import annotations

from dataclasses import dataclass, replace

from autoconf.jobs.job import Job
from autoconf.jobs.queries import NUMBER_GPUS
from autoconf.planner.alternatives import remedies
from autoconf.planner.changes import ALL
from autoconf.planner.domain import JobColumns, inside
from autoconf.planner.estimate import estimates
from autoconf.planner.min_gpus import ONE_JOB
from autoconf.planner.predictors import answering
from autoconf.planner.results import Estimate, Recommendation, Remedy
from autoconf.planner.search import even_counts
from autoconf.predictor import registry
from autoconf.predictor.predictor import Predictor
from autoconf.predictor.user_versions import ModelsFolder


@dataclass(frozen=True)
class Explanation:
    """A recommendation, with estimates and changes that explain it."""

    recommendation: Recommendation
    # Estimates by total number of GPUs: the recommended number and the next smaller one that was considered; without a
    # recommendation, the largest number. Empty for a job outside the version's domain.
    at: dict[int, Estimate]
    # Cheapest first: changes that lead to fewer GPUs or, without a recommendation, changes that lead to one.
    changes: tuple[Remedy, ...]
    threshold: float | None = None  # the probability that is required; None outside the version's domain

    @property
    def why(self) -> str:
        """The reason of the recommendation, without the changes at its end."""
        named = "".join(f"; {change}" for change in self.recommendation.changes)
        return self.recommendation.reason.removesuffix(named)

    def _repr_html_(self) -> str:
        from autoconf.planner.html import explanation_html

        return explanation_html(self)


def explain(job: Job, model_version: str | None = None, models: ModelsFolder = None) -> Explanation:
    """Recommend the smallest number of GPUs, and explain why fewer do not fit and which changes would help.

    Args:
        job: the job.
        model_version: version for a job without one; by default the newest released one. Versions before 2.0.0 have no
            estimates, and every ``Estimate`` says so.
        models: folder of user versions; by default the one that the environment variable ``AUTOCONF_MODELS`` names.

    Returns:
        An ``Explanation``: the answer of ``recommend``, the answers of ``estimate`` on that number of GPUs and on the
        next smaller one, and the single changes that would help. Each change has been tried: with it, ``recommend``
        returns the layout that the change names.

    Raises:
        TypeError: ``job`` is not a ``Job``.
        ValueError: ``model_version`` is invalid.
        AutoConfError: the installation is broken.

    >>> from autoconf import Workload
    >>> job = Workload(model_name="llama-7b", method="lora", gpu_model="NVIDIA-A100-80GB-PCIe",
    ...                tokens_per_sample=8192, batch_size=16)
    >>> found = explain(job)
    >>> {gpus: f"{held.needed_memory_gib:.1f} of {held.usable_memory_gib} GiB" for gpus, held in found.at.items()}
    {1: '112.6 of 79.1 GiB', 2: '61.5 of 79.1 GiB'}
    >>> print(found.changes[0])
    batch_size=11 would fit on 1 GPU
    """
    if not isinstance(job, Job):
        raise TypeError(f"job: must be a Workload, got {type(job).__name__}")
    columns, problems = ONE_JOB.columns_of(job, model_version, models)
    if problems:
        found = ONE_JOB.refuse(problems[0])
        return Explanation(replace(found, stack=job.stack_name()), {}, ())
    (one,) = answering(registry.load(columns["model_version"][0], models), columns["model_name"], [0])
    if one.problem:
        return Explanation(replace(ONE_JOB.refuse(one.problem), stack=job.stack_name()), {}, ())
    predictor = one.predictor
    (found,) = ONE_JOB.answers(predictor, columns)
    found = ONE_JOB.noted(found, (one.note,)) if one.note else found
    total = None if found.gpus is None or found.workers is None else found.gpus * found.workers
    counts = _considered(predictor, columns)
    shown = counts[-1:] if total is None else [count for count in counts if count <= total][-2:]
    on_each = {field: values * len(shown) for field, values in columns.items()} | {NUMBER_GPUS: shown}
    at = dict(zip(shown, estimates(predictor, on_each), strict=True))
    changes = found.changes if total is None else _to_fewer(predictor, columns, total)
    return Explanation(replace(found, stack=job.stack_name()), at, changes, predictor.card.threshold if at else None)


def _considered(predictor: Predictor, columns: JobColumns) -> list[int]:
    """The numbers of GPUs considered for one job, ascending; none outside the domain."""
    jobs = inside(predictor, columns).jobs
    counts, even = even_counts(predictor, jobs)
    considered = even & jobs.can_split(counts, predictor.domain.max_batch_size)
    return [int(count) for count in counts[considered.any(axis=0)]]


def _to_fewer(predictor: Predictor, columns: JobColumns, total: int) -> tuple[Remedy, ...]:
    """Find the changes with which one job fits on fewer than ``total`` GPUs."""
    if total == 1:
        return ()
    # With fewer GPUs allowed the job has no recommendation, so a change that gets it one leads to fewer GPUs.
    fewer = {**columns, "max_gpus": [total - 1]}
    changes = tuple(change for change in ALL if change[0] != "max_gpus")
    return tuple(remedies(predictor, fewer, changes)[0])
