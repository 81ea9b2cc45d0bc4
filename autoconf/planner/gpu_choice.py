"""Rank GPU types by what a run costs on the smallest layout on which a job fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, overload

import pandas as pd

from autoconf.jobs.job import Job
from autoconf.jobs.queries import GPU_MODEL, NUMBER_GPUS
from autoconf.planner.domain import JobColumns, pick
from autoconf.planner.notes import Notes, notes_on
from autoconf.planner.prices import Prices, of_domain, read_prices
from autoconf.planner.results import GpuModel, PriceSource, Problem, Recommendation, Throughput
from autoconf.planner.runner import CHUNK, Solver, checked_table, frame, joined
from autoconf.planner.search import recommendations
from autoconf.planner.throughput import throughputs
from autoconf.predictor import registry
from autoconf.predictor.predictor import Predictor
from autoconf.predictor.user_versions import ModelsFolder

COMPUTED = "speeds of GPU types without measured runs are computed from published figures: throughput gives bounds"


@overload
def cheapest_gpu(
    jobs: Job,
    model_version: str | None = None,
    prices: PriceSource = None,
    models: ModelsFolder = None,
    *,
    provider: str | None = None,
    dataset_tokens: int | None = None,
    epochs: int | None = None,
    steps: int | None = None,
) -> GpuModel: ...
@overload
def cheapest_gpu(
    jobs: pd.DataFrame,
    model_version: str | None = None,
    prices: PriceSource = None,
    models: ModelsFolder = None,
    *,
    provider: str | None = None,
) -> pd.DataFrame: ...
def cheapest_gpu(
    jobs: Job | pd.DataFrame,
    model_version: str | None = None,
    prices: PriceSource = None,
    models: ModelsFolder = None,
    *,
    provider: str | None = None,
    dataset_tokens: int | None = None,
    epochs: int | None = None,
    steps: int | None = None,
) -> GpuModel | pd.DataFrame:
    """Find the type of GPU on which a run costs least, on the smallest layout that fits.

    GPU types are ranked by the cost of the run if its length is given, or else by the cost of a million tokens. Ties go
    to fewer GPUs, then to the name. A type whose speed is not known comes after those, by its price per hour, with a
    note; a type without a price comes after all types with one. More GPUs of a type may cost less in total: ``plan``.

    Args:
        jobs: a ``Job`` without ``gpu_model``, or a DataFrame with its fields as columns; ``dataset_tokens``, ``epochs``
            and ``steps`` may be columns too.
        model_version: version for jobs that name none; by default the newest released one.
        prices: GPU types with their prices per hour, or the path of a YAML file with them, instead of ``prices.yaml``.
            Names may have any spelling that ``gpu_model`` may have. Only the ratios of prices matter.
        provider: a provider whose prices in ``prices.yaml`` count instead, such as ``"AWS"``; excludes ``prices``.
        models: folder of user versions; by default the one that the environment variable ``AUTOCONF_MODELS`` names.
        dataset_tokens: tokens of the training data, >= 1, counted once, padding included.
        epochs: passes over the data, >= 1; by default 1.
        steps: optimizer steps of the run, >= 1, instead of ``dataset_tokens``.

    Returns:
        For a ``Job`` the cheapest ``GpuModel``. For a DataFrame, one with the fields of ``GpuModel`` as columns and for
        each job one row per GPU type of its version, under the job's index: first the types on which it fits, by cost,
        then those without a price, then the types on which it does not fit, with the reason. An invalid job gets one
        row.

    Raises:
        TypeError: ``jobs`` is neither.
        ValueError: a field or a column is missing, invalid or is ``gpu_model``; arguments exclude each other; a price
            is invalid.
        AutoConfError: the installation is broken.

    >>> job = Job(model_name="llama-7b", method="lora", tokens_per_sample=8192, batch_size=16, max_gpus=16)
    >>> found = cheapest_gpu(job, prices={"H100": 2, "L40S": 0.9})
    >>> found.gpu_model, found.gpus, found.cost_per_hour  # 4 L40S cost 3.6 per hour, but are slower than 2 H100
    ('NVIDIA-H100-80GB-HBM3', 2, 4.0)
    >>> cheapest_gpu(job, provider="AWS").cost_per_hour
    13.76
    >>> run = cheapest_gpu(job, prices={"H100": 2, "L40S": 0.9}, dataset_tokens=10**9)
    >>> round(run.cost / run.cost_per_million_tokens)
    1000
    """
    solver = _Rankings(GPU_MODEL, GpuModel, partial(_rankings, read_prices(prices, provider)))
    run = {"dataset_tokens": dataset_tokens, "epochs": epochs, "steps": steps}
    if isinstance(jobs, Job):
        return solver.best(solver.of_job(jobs, model_version, models, **run))
    table = checked_table(jobs, GPU_MODEL, dataset_tokens=dataset_tokens, epochs=epochs, steps=steps)
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
    price = of_domain(prices, predictor)
    on_each = {field: [value for value in values for _ in types] for field, values in columns.items()}
    on_each["gpu_model"] = types * count
    layouts, notes = recommendations(predictor, on_each), notes_on(predictor, on_each)
    speeds = _speeds(price, predictor, on_each, layouts)
    found = [
        _gpu_model(gpu, layout, price.get(gpu), speeds.get(index), about_gpu)
        for index, (gpu, layout, about_gpu) in enumerate(zip(on_each["gpu_model"], layouts, notes, strict=True))
    ]
    usable = {gpu: it.usable_gib for gpu, it in predictor.domain.gpus.items()}
    return [_ranked(found[start : start + len(types)], usable) for start in range(0, len(found), len(types))]


def _speeds(
    price: Mapping[str, float], predictor: Predictor, on_each: JobColumns, layouts: list[Recommendation]
) -> dict[int, Throughput]:
    """The throughput of the layouts that fit, by position."""
    fitting = [index for index, layout in enumerate(layouts) if layout.can_recommend]
    totals = [_total(layouts[index]) for index in fitting]
    return dict(
        zip(fitting, throughputs(price, predictor, pick(on_each, fitting) | {NUMBER_GPUS: totals}), strict=True)
    )


def _total(layout: Recommendation) -> int:
    return (layout.gpus or 0) * (layout.workers or 0)


def _gpu_model(
    gpu: str, layout: Recommendation, price: float | None, speed: Throughput | None, notes: Notes
) -> GpuModel:
    """One GPU type with its smallest layout, and the costs on it."""
    one = GpuModel(
        layout.can_recommend,
        gpu,
        layout.gpus,
        layout.workers,
        reason=layout.reason,
        outcome=layout.outcome,
        notes=notes,
    )
    if speed is None:
        return one
    per_hour = None if price is None else round(price * _total(layout), 9)  # 3 x 0.1 and 1 x 0.3 are a tie
    if speed.tokens_per_second is None:
        return replace(one, cost_per_hour=per_hour, notes=(*notes, f"ranked by price per hour: {speed.reason}"))
    return replace(
        one,
        cost_per_hour=per_hour,
        tokens_per_second=speed.tokens_per_second,
        hours=speed.hours,
        cost=speed.cost,
        cost_per_million_tokens=None if per_hour is None else per_hour / speed.tokens_per_second / 3600 * 1e6,
        notes=(*notes, COMPUTED) if speed.notes else notes,
    )


def _ranked(found: list[GpuModel], usable_gib: Mapping[str, float]) -> list[GpuModel]:
    def order(one: GpuModel) -> tuple[Any, ...]:
        if not one.can_recommend:  # the type with the most memory comes first
            return 3, -usable_gib[str(one.gpu_model)], one.gpu_model
        costs = one.cost, one.cost_per_million_tokens, one.cost_per_hour
        cost = next((each for each in costs if each is not None), 0.0)
        known = 2 if one.cost_per_hour is None else int(one.cost_per_million_tokens is None)
        return known, round(cost, 9), (one.gpus or 0) * (one.workers or 0), one.gpu_model

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
