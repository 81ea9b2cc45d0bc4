"""Plan a run: the layouts on the frontier of time and cost, all of which fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from autoconf.jobs.job import Job
from autoconf.jobs.queries import NUMBER_GPUS, PLAN, RUN_LENGTH
from autoconf.jobs.values import positive_number
from autoconf.planner.domain import JobColumns, column, inside, pick, workers
from autoconf.planner.notes import Notes
from autoconf.planner.prices import Prices, of_domain, read_prices
from autoconf.planner.results import Plan, PriceSource, Problem, Throughput
from autoconf.planner.runner import Solver, checked_table, frame, joined
from autoconf.planner.search import even_counts
from autoconf.planner.throughput import throughputs
from autoconf.predictor.predictor import Predictor
from autoconf.predictor.user_versions import ModelsFolder

_JOBS_AT_ONCE = 20  # each has a candidate for every GPU type and number of GPUs


class Limits(NamedTuple):
    """What a run may take: hours and cost; ``None`` for any."""

    hours: float | None
    cost: float | None

    def allow(self, one: Plan) -> bool:
        """Whether a layout is within the limits."""
        assert one.hours is not None and one.cost is not None
        return one.hours <= (self.hours or np.inf) and one.cost <= (self.cost or np.inf)


def plan(
    jobs: Job | pd.DataFrame,
    model_version: str | None = None,
    prices: PriceSource = None,
    models: ModelsFolder = None,
    *,
    provider: str | None = None,
    dataset_tokens: int | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    deadline_hours: float | None = None,
    budget: float | None = None,
) -> pd.DataFrame:
    """List the layouts of a run for which no other layout that fits is both faster and cheaper.

    The layouts are all GPU types of the version that have a price, with all numbers of GPUs up to ``max_gpus`` that the
    batch and the workers allow. The first one is the cheapest, the last one the fastest. The minimum of GPUs is the
    answer of ``recommend``; here more GPUs may be cheaper in total.

    Args:
        jobs: a ``Job`` without ``gpu_model``, or a DataFrame with its fields as columns; ``dataset_tokens``, ``epochs``
            and ``steps`` may be columns too.
        model_version: version of the memory predictor for jobs that name none; by default the newest released one.
        prices: GPU types with their prices per hour, as for ``cheapest_gpu``; types without a price are left out.
        provider: a provider whose prices in ``prices.yaml`` count instead, such as ``"AWS"``; excludes ``prices``.
        models: folder of user versions; by default the one that the environment variable ``AUTOCONF_MODELS`` names.
        dataset_tokens: tokens of the training data, >= 1, counted once, padding included.
        epochs: passes over the data, >= 1; by default 1.
        steps: optimizer steps of the run, >= 1, instead of ``dataset_tokens``.
        deadline_hours: the longest that the run may take, > 0; by default any time.
        budget: the most that the run may cost, > 0; by default any cost.

    Returns:
        A DataFrame with the fields of ``autoconf.planner.results.Plan`` as columns, in the order of cost; for a table,
        under the index of each job. A job without a layout has one row with the reason.

    Raises:
        TypeError: ``jobs`` is neither.
        ValueError: an argument or a column is missing or invalid, or arguments exclude each other.
        AutoConfError: the installation is broken.

    >>> job = Job(model_name="mistral-7b-v0.1", method="lora", tokens_per_sample=2048, batch_size=32)
    >>> found = plan(job, prices={"A100-SXM4-80GB": 2, "L40S": 1}, dataset_tokens=10**9)
    >>> bool(found["cost"].is_monotonic_increasing and found["hours"].is_monotonic_decreasing)
    True
    """
    limits = Limits(
        None if deadline_hours is None else positive_number("deadline_hours", deadline_hours),
        None if budget is None else positive_number("budget", budget),
    )
    solver = _Solver(PLAN, Plan, partial(_plans, read_prices(prices, provider), limits))
    if isinstance(jobs, Job):
        run = {"dataset_tokens": dataset_tokens, "epochs": epochs, "steps": steps}
        return frame(solver.of_job(jobs, model_version, models, **run), Plan, PLAN)
    table = checked_table(jobs, PLAN, dataset_tokens=dataset_tokens, epochs=epochs, steps=steps)
    chunks, start = [], 0
    for plans in solver.of_table(table, model_version, models, chunk=_JOBS_AT_ONCE):
        index = table.index[start : start + len(plans)].repeat([len(of_job) for of_job in plans])
        chunks.append(frame([one for of_job in plans for one in of_job], Plan, PLAN).set_axis(index))
        start += len(plans)
    return joined(chunks)


class _Solver(Solver[list[Plan]]):
    """Plans each job; a job without a layout gets one row."""

    def refuse(self, problem: Problem) -> list[Plan]:
        return _none(problem)

    def noted(self, answer: list[Plan], notes: Notes) -> list[Plan]:
        return [replace(one, notes=tuple(dict.fromkeys((*one.notes, *notes)))) for one in answer]

    def best(self, answer: list[Plan]) -> Plan:
        return answer[0]


def _plans(prices: Prices, limits: Limits, predictor: Predictor, columns: JobColumns) -> list[list[Plan]]:
    """Plan each of several valid jobs with one version."""
    price = of_domain(prices, predictor)
    count = len(columns["model_name"])
    return [_plan(price, limits, predictor, pick(columns, [index])) for index in range(count)]


def _plan(price: dict[str, float], limits: Limits, predictor: Predictor, one: JobColumns) -> list[Plan]:
    data, _, steps = (one.get(field, [None])[0] for field in RUN_LENGTH)
    if data is None and steps is None:
        return _none(Problem("bad_value", "dataset_tokens: is required, or steps instead"))
    on_types = {field: values * len(price) for field, values in one.items()} | {"gpu_model": list(price)}
    placed = inside(predictor, on_types)
    if not len(placed.positions):
        return _none(placed.problems[0] if placed.problems else Problem("fits_nowhere", "no GPU type has a price"))
    counts, even = even_counts(predictor, placed.jobs)
    job, place = np.nonzero(even & placed.jobs.can_split(counts, predictor.domain.max_batch_size))
    gpus = counts[place]
    candidates = pick(on_types, placed.positions[job].tolist()) | {NUMBER_GPUS: gpus.tolist()}
    nodes = workers(gpus, np.array(column(candidates, "gpus_per_worker"), np.int64)).tolist()
    found = throughputs(price, predictor, candidates)
    fitting = [
        _layout(gpu, price[gpu], int(total), worker, speed)
        for gpu, total, worker, speed in zip(candidates["gpu_model"], gpus.tolist(), nodes, found, strict=True)
        if speed.fits
    ]
    if not fitting:
        reasons = [speed.reason for speed in found if speed.reason]
        return _none(Problem("fits_nowhere", f"it fits on no layout considered; on the last one {reasons[-1]}"))
    return _within(frontier(fitting), limits)


def _layout(gpu: str, price: float, total: int, nodes: int, speed: Throughput) -> Plan:
    assert speed.tokens_per_second is not None
    per_hour = price * total
    return Plan(
        can_recommend=1,
        gpu_model=gpu,
        gpus=total // nodes,
        workers=nodes,
        tokens_per_second=speed.tokens_per_second,
        hours=speed.hours,
        cost=speed.cost,
        cost_per_million_tokens=per_hour / speed.tokens_per_second / 3600 * 1e6,
        cost_per_hour=per_hour,
        notes=speed.notes,
    )


def frontier(layouts: Sequence[Plan]) -> list[Plan]:
    """The layouts for which no other one is both faster and cheaper, the cheapest first.

    >>> slow, fast, bad = Plan(hours=9.0, cost=5.0), Plan(hours=3.0, cost=7.0), Plan(hours=9.0, cost=8.0)
    >>> [one.hours for one in frontier([bad, fast, slow])]
    [9.0, 3.0]
    """
    kept: list[Plan] = []
    for one in sorted(layouts, key=lambda one: (one.cost, one.hours, one.gpu_model or "")):
        assert one.hours is not None
        if not kept or one.hours < (kept[-1].hours or 0):
            kept.append(one)
    return kept


def _within(layouts: list[Plan], limits: Limits) -> list[Plan]:
    """The layouts within the limits, with ranks; if there are none, the reason with the nearest ones."""
    allowed = [one for one in layouts if limits.allow(one)]
    if allowed:
        return [replace(one, rank=rank) for rank, one in enumerate(allowed, 1)]
    cheapest, fastest = layouts[0], layouts[-1]
    asked = [
        f"{words} {value:g}"
        for words, value in (("deadline_hours", limits.hours), ("budget", limits.cost))
        if value is not None
    ]
    nearest = f"the fastest takes {fastest.hours:.1f} hours, the cheapest costs {cheapest.cost:.2f}"
    return _none(Problem("fits_nowhere", f"no layout that fits is within {' and '.join(asked)}: {nearest}"))


def _none(problem: Problem) -> list[Plan]:
    return [Plan(rank=1, reason=problem.reason, outcome=problem.outcome)]
