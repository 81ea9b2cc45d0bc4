"""The speed of one job on one layout: physics, the learned correction, and bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from autoconf.jobs.stack import Stack
from autoconf.predictor.cluster_speed import Bounds, ClusterSpeed
from autoconf.speed.bounds import bounds_key, missing, near, note, waits, widened
from autoconf.speed.features import MONOTONE, features
from autoconf.speed.gpu_speed import gpu_speeds
from autoconf.speed.roofline import Times, loads, times
from autoconf.speed.shapes import Shapes
from autoconf.speed.version import SpeedPredictor
from autoconf.speed.work import Layout, Work, work_of


class SpeedJob(NamedTuple):
    """A job on a layout."""

    model: str
    shapes: Shapes
    method: str
    stack: Stack
    gpu_model: str  # a key of ``gpu_speeds``
    layout: Layout


class Speed(NamedTuple):
    """The speed of a job.

    Attributes:
        tokens_per_second: of all GPUs.
        low: lower bound of it.
        high: upper bound of it.
        step_seconds: of an optimizer step.
        model_flops_utilization: model FLOPs of the GPUs' published peak, from 0 to 1.
        limit: what takes the longest.
        notes: what was not measured, and which figures of the GPU are not verified.
    """

    tokens_per_second: float
    low: float
    high: float
    step_seconds: float
    model_flops_utilization: float
    limit: str
    notes: tuple[str, ...]


def speeds(predictor: SpeedPredictor, jobs: Sequence[SpeedJob], cluster: ClusterSpeed | None = None) -> list[Speed]:
    """Estimate the speed of jobs.

    Args:
        predictor: a version of the throughput predictor.
        jobs: the jobs.
        cluster: what a user's runs say about their cluster.

    Raises:
        AutoConfError: AutoGluon or LightGBM fails.
    """
    if not jobs:
        return []
    work = [work_of(job.shapes, job.method, job.stack, job.layout) for job in jobs]
    constants = predictor.card.constants
    spent = [
        times(loads(one, gpu_speeds()[job.gpu_model], job.layout), constants)
        for job, one in zip(jobs, work, strict=True)
    ]
    rows = [
        features(job.shapes, job.method, job.stack, gpu_speeds()[job.gpu_model], job.layout, one)
        for job, one in zip(jobs, work, strict=True)
    ]
    factors = predictor.corrections(pd.DataFrame(rows, columns=list(MONOTONE))).tolist()
    return [_speed(predictor, cluster, *parts) for parts in zip(jobs, work, spent, factors, strict=True)]


def _speed(
    predictor: SpeedPredictor, cluster: ClusterSpeed | None, job: SpeedJob, work: Work, spent: Times, factor: float
) -> Speed:
    layout, gpu = job.layout, gpu_speeds()[job.gpu_model]
    here = 1.0 if cluster is None else cluster.factor(layout.gpus, layout.nodes)
    seconds = spent.total / (factor * here)  # of a micro-batch
    rate = layout.gpus * work.tokens / seconds
    bounds, of_job = _bounds(predictor, cluster, job, spent)
    return Speed(
        tokens_per_second=rate,
        low=rate * bounds.low,
        high=rate * bounds.high,
        step_seconds=seconds * layout.steps,
        model_flops_utilization=work.model_flops / seconds / gpu.flops(work.dtype),
        limit=spent.limit,
        notes=tuple(filter(None, (of_job, gpu.warning(job.gpu_model)))),
    )


def _bounds(predictor: SpeedPredictor, cluster: ClusterSpeed | None, job: SpeedJob, spent: Times) -> tuple[Bounds, str]:
    """The bounds of a job, and a note about what was not measured."""
    asked = job.method, job.gpu_model, job.stack, job.layout
    measured = predictor.card.measured
    if cluster is not None:
        if near(cluster.measured, job.model, missing(cluster.measured, *asked)) == "measured":
            return cluster.bounds, ""
        measured = measured.also(cluster.measured)
    not_measured = missing(measured, *asked)
    how_near = near(measured, job.model, not_measured)
    bounds = predictor.card.bounds[bounds_key(how_near, waits(spent))]
    if how_near == "nothing":
        bounds = widened(bounds, len(not_measured) + (job.model not in measured.models))
    return bounds, note(not_measured, job.model, how_near)
