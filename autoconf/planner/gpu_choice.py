"""Rank GPU types by the cost of the smallest layout on which a job fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, overload

import pandas as pd

from autoconf.jobs.job import Job
from autoconf.jobs.queries import GPU_MODEL
from autoconf.planner.domain import JobColumns
from autoconf.planner.notes import Notes, notes_on
from autoconf.planner.prices import Prices, of_domain, read_prices
from autoconf.planner.results import GpuModel, PriceSource, Problem, Recommendation
from autoconf.planner.runner import CHUNK, Solver, checked_table, frame, joined
from autoconf.planner.search import recommendations
from autoconf.predictor import registry
from autoconf.predictor.predictor import Predictor
from autoconf.predictor.user_versions import ModelsFolder


@overload
def cheapest_gpu(
    jobs: Job, model_version: str | None = None, prices: PriceSource = None, models: ModelsFolder = None
) -> GpuModel: ...
@overload
def cheapest_gpu(
    jobs: pd.DataFrame, model_version: str | None = None, prices: PriceSource = None, models: ModelsFolder = None
) -> pd.DataFrame: ...
def cheapest_gpu(
    jobs: Job | pd.DataFrame,
    model_version: str | None = None,
    prices: PriceSource = None,
    models: ModelsFolder = None,
) -> GpuModel | pd.DataFrame:
    """Find the type of GPU on which the smallest layout that fits costs least per hour.

    The cost is the price per GPU and hour times the number of GPUs; the duration of the job is not considered. Ties go
    to fewer GPUs, then to the name. A type without a price comes after all types with one.

    Args:
        jobs: a ``Job`` without ``gpu_model``, or a DataFrame with its fields as columns.
        model_version: version for jobs that name none; by default the newest released one.
        prices: GPU types with their prices per hour, or the path of a YAML file with them, instead of ``prices.yaml``.
            Names may have any spelling that ``gpu_model`` may have. Only the ratios of prices matter.
        models: folder of user versions; by default the one that the environment variable ``AUTOCONF_MODELS`` names.

    Returns:
        For a ``Job`` the cheapest ``GpuModel``. For a DataFrame, one with the fields of ``GpuModel`` as columns and for
        each job one row per GPU type of its version, under the job's index: first the types on which it fits, by cost,
        then those without a price, then the types on which it does not fit, with the reason. An invalid job gets one
        row.

    Raises:
        TypeError: ``jobs`` is neither.
        ValueError: a field or a column is missing, invalid or is ``gpu_model``; a price is invalid.
        AutoConfError: the installation is broken.

    >>> job = Job(model_name="llama-7b", method="lora", tokens_per_sample=8192, batch_size=16, max_gpus=16)
    >>> cheapest_gpu(job, prices={"H100": 2, "L40S": 0.9})
    GpuModel(can_recommend=1, gpu_model='L40S', gpus=4, workers=1, cost_per_hour=3.6, rank=1, reason='', outcome='ok')
    >>> cheapest_gpu(job, prices={"H100": 2, "L40S": 1}).gpu_model  # 2 H100 and 4 L40S cost the same
    'NVIDIA-H100-80GB-HBM3'
    """
    solver = _Rankings(GPU_MODEL, GpuModel, partial(_rankings, read_prices(prices)))
    if isinstance(jobs, Job):
        return solver.best(solver.of_job(jobs, model_version, models))
    table = checked_table(jobs, GPU_MODEL)
    types = max(len(registry.card(version).domain.gpus) for version in registry.RELEASED)
    chunks = []
    start = 0
    for rankings in solver.of_table(table, model_version, models, chunk=CHUNK // types):
        index = table.index[start : start + len(rankings)].repeat([len(ranking) for ranking in rankings])
        chunks.append(frame([one for ranking in rankings for one in ranking], GpuModel, GPU_MODEL).set_axis(index))
        start += len(rankings)
    return joined(chunks)


class _Rankings(Solver[list[GpuModel]]):
    """Ranks the GPU types for each job; an invalid job gets one row."""

    def refuse(self, problem: Problem) -> list[GpuModel]:
        return [GpuModel(rank=1, reason=problem.reason, outcome=problem.outcome)]

    def noted(self, answer: list[GpuModel], notes: Notes) -> list[GpuModel]:
        return [replace(one, notes=tuple(dict.fromkeys((*one.notes, *notes)))) for one in answer]

    def best(self, answer: list[GpuModel]) -> GpuModel:
        return _best(answer)


def _rankings(prices: Prices, predictor: Predictor, columns: JobColumns) -> list[list[GpuModel]]:
    """Rank the GPU types for each job."""
    types, count = list(predictor.domain.gpus), len(columns["model_name"])
    newest = registry.card(registry.DEFAULT).domain
    price = of_domain(prices, predictor.domain, predictor.card.version, newest)
    on_each = {field: [value for value in values for _ in types] for field, values in columns.items()}
    on_each["gpu_model"] = types * count
    answers, notes = recommendations(predictor, on_each), notes_on(predictor, on_each)
    found = [
        GpuModel(
            layout.can_recommend,
            gpu,
            layout.gpus,
            layout.workers,
            _cost(price.get(gpu), layout),
            reason=layout.reason,
            outcome=layout.outcome,
            notes=about_gpu,
        )
        for gpu, layout, about_gpu in zip(on_each["gpu_model"], answers, notes, strict=True)
    ]
    usable = {gpu: it.usable_gib for gpu, it in predictor.domain.gpus.items()}
    return [_ranked(found[start : start + len(types)], usable) for start in range(0, len(found), len(types))]


def _cost(price: float | None, layout: Recommendation) -> float | None:
    if price is None or layout.gpus is None or layout.workers is None:
        return None
    return round(price * layout.gpus * layout.workers, 9)  # 3 x 0.1 and 1 x 0.3 are a tie


def _ranked(found: list[GpuModel], usable_gib: Mapping[str, float]) -> list[GpuModel]:
    def order(one: GpuModel) -> tuple[Any, ...]:
        if not one.can_recommend:  # the type with the most memory comes first
            return 2, -usable_gib[str(one.gpu_model)], one.gpu_model
        total = (one.gpus or 0) * (one.workers or 0)
        return int(one.cost_per_hour is None), one.cost_per_hour or 0.0, total, one.gpu_model

    return [replace(one, rank=rank) for rank, one in enumerate(sorted(found, key=order), 1)]


def _best(ranking: list[GpuModel]) -> GpuModel:
    """The first of a ranking; if no type is large enough, one reason for all types."""
    first = ranking[0]
    if first.can_recommend:
        return first
    if len({one.reason for one in ranking}) == 1:
        return GpuModel(reason=first.reason, outcome=first.outcome, notes=first.notes)
    most = f"on {first.gpu_model}, which has the most memory, {first.reason}"
    return GpuModel(
        reason=f"it fits on none of {len(ranking)} GPU types: {most}", outcome=first.outcome, notes=first.notes
    )
