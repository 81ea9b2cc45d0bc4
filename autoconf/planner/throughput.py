"""Estimate the speed of a job on a given number of GPUs, and the time and the cost of a run."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import overload

import numpy as np
import pandas as pd

from autoconf.jobs.job import GPU_MEMORY, STACK_FIELDS, UNNAMED, Job, stack_of
from autoconf.jobs.queries import NUMBER_GPUS, RUN_LENGTH, THROUGHPUT
from autoconf.memory.objectives import OF_PAIRS
from autoconf.memory.towers import towers
from autoconf.memory.units import Integers
from autoconf.planner.domain import JobColumns, Placed, on_counts, outside, value_of, workers
from autoconf.planner.estimate import candidates_on
from autoconf.planner.known_names import names_of
from autoconf.planner.prices import Prices, of_domain, read_prices
from autoconf.planner.results import PriceSource, Throughput
from autoconf.planner.runner import Solver
from autoconf.planner.search import causes, decide
from autoconf.predictor.predictor import Predictor
from autoconf.predictor.user_versions import ModelsFolder
from autoconf.speed.estimate import Speed, SpeedJob, speeds
from autoconf.speed.gpu_speed import gpu_speeds
from autoconf.speed.shapes import Shapes, known_shapes, shapes_of_config
from autoconf.speed.version import load
from autoconf.speed.work import Layout


@overload
def throughput(
    workloads: Job,
    number_gpus: int,
    model_version: str | None = None,
    models: ModelsFolder = None,
    *,
    dataset_tokens: int | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    prices: PriceSource = None,
    provider: str | None = None,
) -> Throughput: ...
@overload
def throughput(
    workloads: pd.DataFrame,
    number_gpus: None = None,
    model_version: str | None = None,
    models: ModelsFolder = None,
    *,
    prices: PriceSource = None,
    provider: str | None = None,
) -> pd.DataFrame: ...
def throughput(
    workloads: Job | pd.DataFrame,
    number_gpus: int | None = None,
    model_version: str | None = None,
    models: ModelsFolder = None,
    *,
    dataset_tokens: int | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    prices: PriceSource = None,
    provider: str | None = None,
) -> Throughput | pd.DataFrame:
    """Estimate how fast jobs run on a number of GPUs, and how long a run takes and what it costs.

    The time follows from the arithmetic, memory traffic, messages and kernels of the job and from published figures of
    the GPU; AutoGluon corrects it by what 572 public runs measured. The bounds are the 10th and the 90th percentile of
    runs that were held out. Notes say where no such runs were measured,
    and which figures of a GPU are not verified.

    Args:
        workloads: a ``Workload``, or a DataFrame with its fields and ``number_gpus`` as columns; ``dataset_tokens``,
            ``epochs`` and ``steps`` may be columns too.
        number_gpus: GPUs in total, >= 1; for a ``Workload`` only. They are on as many nodes as ``gpus_per_worker``
            needs.
        model_version: version of the memory predictor for jobs without one; by default the newest released one.
        models: folder of user versions; by default the one that the environment variable ``AUTOCONF_MODELS`` names.
        dataset_tokens: tokens of the training data, >= 1, counted once, padding included.
        epochs: passes over the data, >= 1; by default 1.
        steps: optimizer steps of the run, >= 1, instead of ``dataset_tokens``.
        prices: prices per GPU and hour, as for ``cheapest_gpu``.
        provider: a provider whose prices in ``prices.yaml`` count instead, such as ``"AWS"``; excludes ``prices``.

    Returns:
        A ``Throughput`` for a ``Workload``; for a DataFrame, one with the same index and the fields of ``Throughput``
        as columns.

    Raises:
        TypeError: ``workloads`` is neither.
        ValueError: an argument or a column is missing or invalid, arguments exclude each other, or a price is invalid.
        AutoConfError: the installation is broken.

    >>> from autoconf import Workload
    >>> job = Workload(model_name="mistral-7b-v0.1", method="full", gpu_model="NVIDIA-A100-SXM4-80GB",
    ...                tokens_per_sample=2048, batch_size=32, sharding="fsdp1")
    >>> found = throughput(job, number_gpus=8, dataset_tokens=1_000_000_000)
    >>> found.fits, found.limit, found.tokens_per_second_low < found.tokens_per_second < found.tokens_per_second_high
    (1, 'compute', True)
    >>> 9 < found.hours < 13  # a public run with these settings had 25,267 tokens per second: 11 hours
    True
    """
    arguments = {"dataset_tokens": dataset_tokens, "epochs": epochs, "steps": steps}
    solver = Solver(THROUGHPUT, Throughput, partial(_solve, read_prices(prices, provider)))
    return solver.of_either(workloads, model_version, models, number_gpus=number_gpus, **arguments)


def _solve(prices: Prices, predictor: Predictor, columns: JobColumns) -> list[Throughput]:
    """Estimate valid jobs, each on its ``number_gpus``, with one version of the memory predictor."""
    return throughputs(of_domain(prices, predictor), predictor, columns)


def throughputs(price: Mapping[str, float], predictor: Predictor, columns: JobColumns) -> list[Throughput]:
    """Estimate valid jobs, each on its ``number_gpus``.

    Args:
        price: price per hour of GPU types of the version's domain.
        predictor: a version of the memory predictor.
        columns: valid jobs.
    """
    gpus = np.array(columns[NUMBER_GPUS], np.int64)
    placed, jobs = _speed_jobs(predictor, columns, on_counts(predictor, columns, gpus), gpus)
    counts = gpus[placed.positions]
    candidates = candidates_on(predictor, placed.jobs, counts)
    fits = decide(predictor, candidates)
    why_not = iter(causes(candidates.subset(~fits)))
    found = []
    for job, speed, does_fit, position in zip(
        jobs, speeds(load(), jobs, predictor.card.cluster_speed), fits.tolist(), placed.positions.tolist(), strict=True
    ):
        hours = _hours(columns, position, job.layout, speed)
        each = price.get(job.gpu_model)
        found.append(
            Throughput(
                fits=int(does_fit),
                tokens_per_second=speed.tokens_per_second,
                tokens_per_second_low=speed.low,
                tokens_per_second_high=speed.high,
                step_seconds=speed.step_seconds,
                model_flops_utilization=speed.model_flops_utilization,
                limit=speed.limit,
                hours=hours,
                cost=None if hours is None or each is None else hours * each * job.layout.gpus,
                reason="" if does_fit else f"it does not fit: {next(why_not)}",
                outcome="ok" if does_fit else "fits_nowhere",
                notes=speed.notes,
            )
        )
    return placed.answers(found, Throughput)


def _speed_jobs(
    predictor: Predictor, columns: JobColumns, placed: Placed, gpus: Integers
) -> tuple[Placed, list[SpeedJob]]:
    """The jobs whose speed can be estimated; the others become problems."""
    names, jobs, problems = names_of(predictor.domain), [], {}
    nodes = workers(gpus[placed.positions], placed.jobs.gpus_per_worker)
    counts = gpus[placed.positions]
    tokens = placed.jobs.tokens_per_gpu(np.arange(len(counts)), counts)
    for index, position in enumerate(placed.positions.tolist()):
        model, gpu = (str(names[field].find(columns[field][position])) for field in ("model_name", "gpu_model"))
        shapes = _shapes(predictor, model)
        if shapes is None or gpu not in gpu_speeds():
            problems[index] = outside(_unknown(model, shapes is None, str(columns["gpu_model"][position])))
            continue
        fields = {field: value_of(columns, field, position) for field in STACK_FIELDS}
        stack = stack_of(fields)
        each = int(placed.jobs.tokens_per_sample[index])
        steps = int(fields["gradient_accumulation_steps"])
        samples = float(tokens[index]) / each * (2 if stack.objective in OF_PAIRS else 1)
        layout = Layout(samples, each, int(counts[index]), int(nodes[index]), steps)
        method = str(names["method"].find(fields["method"]))
        jobs.append(SpeedJob(model, shapes, method, stack, gpu, layout))
    return placed.without(problems), jobs


def _shapes(predictor: Predictor, model: str) -> Shapes | None:
    """The shapes of a model; ``None`` if they are not known."""
    entry = predictor.domain.models.get(model)
    return known_shapes(model) or (shapes_of_config(entry.config) if entry is not None and entry.config else None)


def _unknown(model: str, without_shapes: bool, gpu: str) -> str:
    """Why the speed of a job is not known: its model has no shapes here, or its GPU type no figures of speed."""
    if without_shapes and model in towers():
        return f"throughput is not known for {model}: the time of its vision tower is not counted"
    if without_shapes:
        return (
            f"throughput is not known for model {model}: its config is not one of a known type, or is not in the "
            "version, which an earlier release made"
        )
    if gpu == UNNAMED:
        return f"throughput is not known for a GPU that only {GPU_MEMORY} describes: name its type in gpu_model"
    return f"throughput is not known for GPU type {gpu}: the package lacks its peak, its bandwidth or its link"


def _hours(columns: JobColumns, position: int, layout: Layout, speed: Speed) -> float | None:
    """The hours of a run; ``None`` if its length was not given."""
    data, epochs, steps = (columns[field][position] if field in columns else None for field in RUN_LENGTH)
    if steps is not None:
        return float(steps * speed.step_seconds / 3600)
    return None if data is None else float(data * (epochs or 1) / speed.tokens_per_second / 3600)
