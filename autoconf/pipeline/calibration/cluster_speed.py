"""Learn how fast a user's cluster is from its own runs, starting from the released throughput predictor.

Three factors on tokens per second are learned: on one GPU, on several GPUs of a node, and on several nodes. They do not
depend on the GPU type, the model or the batch, so a faster GPU and a larger batch are never slower afterwards.
Some rows are wrong, and may have any speed; the residuals of the others have a Student's t distribution. The result is
adopted only if it improves the held-out log score by two standard errors, and if the rows agree with each other.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from autoconf.errors import BadInput
from autoconf.jobs.job import OPTIONAL, STACK_FIELDS, Workload, stack_of
from autoconf.jobs.queries import NUMBER_GPUS
from autoconf.memory.units import Floats, Integers
from autoconf.pipeline.calibration.user_runs import Run, read_speed_runs
from autoconf.planner.domain import JobColumns, workers
from autoconf.planner.known_names import names_of
from autoconf.planner.throughput import throughputs
from autoconf.predictor.cluster_speed import Bounds, ClusterSpeed, Measured, settings_of
from autoconf.predictor.predictor import Predictor

LARGEST_SHARE = 0.7  # of the published peak, as for the public rows; more counts other tokens
PLAUSIBLE = 0.05, 2.5  # factors beyond that count other tokens
_KINDS = 3  # one GPU, several GPUs of a node, several nodes
# Standard deviations of the logarithms: of the whole cluster, and of one kind of layout next to it.
_PRIOR, _PRIOR_OF_KIND = 0.5, 0.3
_FREEDOM = 3.0
_WRONG, _WRONG_DENSITY = 0.1, 0.1  # share of wrong rows, and their density: any logarithm from -5 to 5
_DISAGREEMENT = 0.35  # median of the absolute held-out residuals, above which no cluster explains the rows
_SCALES = np.geomspace(0.02, 1.0, 25)  # of the residuals
_FOLDS = 10
_STANDARD_ERRORS = 2.0
_LEAST_ROWS = 8
_LEVELS = 0.1, 0.9


@dataclass(frozen=True)
class LearnedSpeed:
    """What was learned about the speed of a cluster."""

    adopted: bool
    sentence: str
    speed: ClusterSpeed | None  # for the card; ``None`` if nothing was adopted
    learned: dict[str, float]
    report: list[dict[str, Any]]  # rows (their kind), count
    evaluation: list[dict[str, Any]]  # errors on held-out rows before and after


@dataclass(frozen=True)
class _Rows:
    """Rows to learn from; arrays have shape (rows,)."""

    logs: Floats  # of measured over predicted tokens per second
    kinds: Integers
    gpus: Integers
    jobs: Integers  # rows of one job are held out together


def learn_speed(predictor: Predictor, table: pd.DataFrame, source: str) -> LearnedSpeed:
    """Learn how fast a cluster is.

    Args:
        predictor: predictor of the version to start from; what it knows about another cluster is not used.
        table: runs from ``tables.read_table``, with the columns of ``read_speed_runs``.
        source: the name of the table in messages.

    Raises:
        BadInput: the table is not a table of runs, or no run has a throughput that can be used.
    """
    runs = read_speed_runs(table, source)
    inside = [run for run in runs if not run.outside]
    columns = _columns(inside)
    speeds = throughputs({}, predictor.released(), columns) if inside else []
    counts = Counter({"read": len(table), "without a throughput, or failed": len(table) - len(runs)})
    counts.update(f"outside the domain: {run.outside}" for run in runs if run.outside)
    kept, logs = [], []
    for index, (run, speed) in enumerate(zip(inside, speeds, strict=True)):
        if speed.tokens_per_second is None or speed.model_flops_utilization is None or run.tokens_per_second is None:
            counts[f"outside the domain: {speed.reason}"] += 1
            continue
        ratio = run.tokens_per_second / speed.tokens_per_second
        if speed.model_flops_utilization * ratio > LARGEST_SHARE:
            counts[f"exceeds {LARGEST_SHARE:.0%} of the GPU's peak: counts other tokens"] += 1
            continue
        kept.append(index)
        logs.append(float(np.log(ratio)))
    counts["used"] = len(kept)
    report = [{"rows of throughput": kind, "count": count} for kind, count in counts.items()]
    if not kept:
        raise BadInput(
            f"{source}: no throughput to learn from; " + "; ".join(f"{count} {kind}" for kind, count in counts.items())
        )
    chosen = {field: [values[index] for index in kept] for field, values in columns.items()}
    return _learned(predictor, _rows(chosen, np.array(logs)), chosen, report)


def _columns(runs: list[Run]) -> JobColumns:
    columns = {field: [run.job.get(field, OPTIONAL.get(field)) for run in runs] for field in Workload.model_fields}
    defaults = {field: default for field, default in OPTIONAL.items() if field in columns}
    filled = {
        field: [defaults.get(field) if value is None else value for value in values]
        for field, values in columns.items()
    }
    return filled | {NUMBER_GPUS: [run.gpus for run in runs]}


def _rows(columns: JobColumns, logs: Floats) -> _Rows:
    gpus = np.array(columns[NUMBER_GPUS], np.int64)
    nodes = workers(gpus, np.array(columns["gpus_per_worker"], np.int64))
    kinds = np.where(nodes > 1, 2, np.where(gpus > 1, 1, 0))
    jobs = pd.DataFrame(columns).astype(str).groupby(list(columns), sort=False).ngroup().to_numpy()
    return _Rows(logs, kinds, gpus, jobs)


def _learned(predictor: Predictor, rows: _Rows, columns: JobColumns, report: list[dict[str, Any]]) -> LearnedSpeed:
    before, after, centers = _held_out(rows)
    gains = pd.Series(after - before).groupby(rows.jobs).sum().to_numpy()
    gain = float(gains.sum())
    error = float(np.sqrt(len(gains)) * gains.std(ddof=1)) if len(gains) > 1 else np.inf
    center, _ = _fit(rows.logs, rows.kinds)
    factors = np.exp(center)
    spread = float(np.median(np.abs(rows.logs - centers)))
    why_not = _why_not(rows, factors, gain, error) or _disagree(spread)
    speed = ClusterSpeed(
        **dict(zip(("one", "several", "nodes"), factors.round(4).tolist(), strict=True)),
        bounds=_bounds(rows.logs - centers),
        measured=_measured(predictor, columns, rows),
        rows=len(rows.logs),
    )
    names = "factor on one GPU", "factor on several GPUs", "factor on several nodes"
    errors = {"before": rows.logs, "after, learned from the others": rows.logs - centers}
    return LearnedSpeed(
        adopted=not why_not,
        sentence=f"not adopted: {why_not}"
        if why_not
        else "adopted; held-out throughput is predicted "
        f"{gain:.1f} nats better in all, with a standard error of {error:.1f}",
        speed=None if why_not else speed,
        learned=dict(zip(names, factors.round(4).tolist(), strict=True)),
        report=report,
        evaluation=[
            {"held-out throughput": name, "rows": len(of), "median error %": _percent(of)}
            for name, of in errors.items()
        ],
    )


def _why_not(rows: _Rows, factors: Floats, gain: float, error: float) -> str:
    """Why nothing is adopted; empty text if it is."""
    if len(rows.logs) < _LEAST_ROWS:
        return f"{len(rows.logs)} rows are too few; at least {_LEAST_ROWS} are required"
    several = rows.gpus > 1
    whole, of_one = (np.median(np.abs(rows.logs[several] + more)) if several.any() else 0.0
                     for more in (0.0, np.log(rows.gpus[several])))  # fmt: skip
    if whole > 0.4 and of_one < whole / 2:
        return "the throughput seems to be that of one GPU; give it in a column tokens_per_second_per_gpu"
    present = factors[np.unique(rows.kinds)]
    if present.min() < PLAUSIBLE[0] or present.max() > PLAUSIBLE[1]:
        return f"a factor of {present.min():.2f} to {present.max():.2f} means that the rows count other tokens"
    if gain <= _STANDARD_ERRORS * error:
        return (
            f"the throughput does not change; held-out runs are predicted {abs(gain):.1f} nats "
            f"{'better' if gain > 0 else 'worse'} in all, with a standard error of {error:.1f}, and "
            f"{_STANDARD_ERRORS:g} of these are required"
        )
    return ""


def _disagree(spread: float) -> str:
    if spread <= _DISAGREEMENT:
        return ""
    return (
        f"the rows do not agree with each other: learned from the others, half of them are off by {spread:.0%} or more"
    )


def _percent(logs: Floats) -> float:
    return round(float(100 * np.median(np.abs(np.expm1(-logs)))), 1)


def _fit(logs: Floats, kinds: Integers) -> tuple[Floats, float]:
    """The most likely logarithms of the factors, shape (kinds,), and the scale of the residuals."""
    design = np.zeros((len(logs), 1 + _KINDS))
    design[:, 0] = 1
    design[np.arange(len(logs)), 1 + kinds] = 1
    precision = np.diag([_PRIOR**-2, *[_PRIOR_OF_KIND**-2] * _KINDS])
    center: Floats = np.zeros(1 + _KINDS)
    scale = max(float(np.median(np.abs(logs))), float(_SCALES[0]))
    center[0] = np.median(logs)
    for _ in range(50):  # of reweighted least squares
        off = logs - design @ center
        weights = _right(off, scale) * (_FREEDOM + 1) / (_FREEDOM + (off / scale) ** 2) / scale**2
        normal = design.T @ (weights[:, None] * design) + precision
        center = np.asarray(np.linalg.solve(normal, design.T @ (weights * logs)), np.float64)
        scale = _scale(logs - design @ center)
    return center[0] + center[1:], scale


def _scale(residuals: Floats) -> float:
    return float(max(_SCALES, key=lambda scale: _log_density(residuals, scale).sum() - np.log(scale)))


def _student(residuals: Floats, scale: float) -> Floats:
    """The density of the residuals of rows that are not wrong, shape (rows,)."""
    constant = 2 / (np.pi * np.sqrt(_FREEDOM))  # of 3 degrees of freedom
    found: Floats = constant / scale / (1 + (residuals / scale) ** 2 / _FREEDOM) ** ((_FREEDOM + 1) / 2)
    return found


def _right(residuals: Floats, scale: float) -> Floats:
    """The probability that each row is not wrong."""
    right = (1 - _WRONG) * _student(residuals, scale)
    found: Floats = right / (right + _WRONG * _WRONG_DENSITY)
    return found


def _log_density(residuals: Floats, scale: float) -> Floats:
    found: Floats = np.log((1 - _WRONG) * _student(residuals, scale) + _WRONG * _WRONG_DENSITY)
    return found


def _held_out(rows: _Rows) -> tuple[Floats, Floats, Floats]:
    """Log scores of each row before and after, and the center predicted for it, each learned from the other jobs."""
    count = len(rows.logs)
    before, after, centers = np.zeros(count), np.zeros(count), np.zeros(count)
    folds = pd.Series(rows.jobs).rank(method="dense").to_numpy(int) % _FOLDS
    for fold in np.unique(folds):
        out = folds == fold
        known = rows.logs[~out]
        if not len(known):
            continue
        center, scale = _fit(known, rows.kinds[~out])
        centers[out] = center[rows.kinds[out]]
        before[out] = _log_density(rows.logs[out], _scale(known))
        after[out] = _log_density(rows.logs[out] - centers[out], scale)
    return before, after, centers


def _bounds(residuals: Floats) -> Bounds:
    """Percentiles of held-out residuals, moved outward by one row's share, as conformal prediction has them."""
    outward = 1 / (len(residuals) + 1)
    low, high = np.exp(np.quantile(residuals, [max(_LEVELS[0] - outward, 0), min(_LEVELS[1] + outward, 1)]))
    return Bounds(low=round(float(min(low, 1.0)), 4), high=round(float(max(high, 1.0)), 4))


def _measured(predictor: Predictor, columns: JobColumns, rows: _Rows) -> Measured:
    """What the rows have."""
    names = names_of(predictor.domain)

    def of(field: str) -> list[str]:
        return sorted({str(names[field].find(value)) for value in columns[field]})

    stacks = [
        stack_of({field: columns[field][index] for field in STACK_FIELDS if field in columns})
        for index in range(len(rows.logs))
    ]
    several, full = rows.gpus > 1, [names["method"].find(method) == "full" for method in columns["method"]]
    nodes = workers(rows.gpus, np.array(columns["gpus_per_worker"], np.int64))
    return Measured(
        models=of("model_name"),
        gpus=of("gpu_model"),
        methods=of("method"),
        optimizers=sorted({stack.optim for stack, is_full in zip(stacks, full, strict=True) if is_full}),
        most_gpus=int(rows.gpus[nodes == 1].max(initial=0)),
        most_tokens_per_sample=max(columns["tokens_per_sample"]),
        shardings=sorted({stack.sharding for stack, is_one in zip(stacks, several, strict=True) if is_one}),
        gradient_syncs=sorted({stack.gradient_sync for stack in stacks}),
        most_nodes=int(nodes.max()),
        **settings_of(stacks),
    )
