"""Fit the constants of the physics to measured rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from autoconf.jobs.stack import Stack
from autoconf.memory.units import Floats
from autoconf.pipeline.throughput.rows import as_method
from autoconf.speed.counts import Counts
from autoconf.speed.gpu_speed import GpuSpeed, gpu_speeds
from autoconf.speed.roofline import Constants, Loads, loads, times
from autoconf.speed.shapes import Shapes, known_shapes
from autoconf.speed.work import Layout, Work, work_of

# Bounds of the constants: shares of published figures, seconds of the host, and the overlap.
_BOUNDS = {
    "products": (0.4, 0.95),
    "attention": (0.15, 0.95),
    "memory": (0.3, 1.0),
    "link": (0.1, 1.0),
    "launch_s": (2e-6, 6e-5),
    "message_s": (5e-6, 3e-3),
    "overlap": (1.0, 8.0),
}


class Measured(NamedTuple):
    """One measured row, with its work."""

    shapes: Shapes
    method: str
    stack: Stack
    gpu: GpuSpeed
    layout: Layout
    work: Work


def measured(rows: pd.DataFrame, stacks: dict[str, Stack], counts: Counts | None = None) -> list[Measured]:
    """Compute the work of measured rows; ``counts`` as in ``work_of``."""
    found = []
    for row in rows.to_dict("records"):
        shapes = known_shapes(row["model"])
        assert shapes is not None, row["model"]
        layout = Layout(row["samples"], row["tokens_per_sample"], row["number_gpus"], row["nodes"], row["steps"])
        method, stack = as_method(row["method"]), stacks[row["stack"]]
        found.append(
            Measured(
                shapes,
                method,
                stack,
                gpu_speeds()[row["gpu_model"]],
                layout,
                work_of(shapes, method, stack, layout, counts),
            )
        )
    return found


def rates(runs: list[Measured], constants: Constants) -> Floats:
    """Tokens per second of all GPUs by physics alone, shape (runs,)."""
    return _rates(*_loads(runs), constants)


def _loads(runs: list[Measured]) -> tuple[Loads, Floats]:
    """The loads of several runs, and the tokens of a micro-batch on all GPUs, all of shape (runs,)."""
    each = np.array([loads(run.work, run.gpu, run.layout) for run in runs], np.float64)
    return Loads(*each.T), np.array([run.layout.gpus * run.work.tokens for run in runs])


def _rates(load: Loads, tokens: Floats, constants: Constants) -> Floats:
    found: Floats = tokens / np.asarray(times(load, constants).total, np.float64)
    return found


def fit_constants(runs: list[Measured], measured_rates: Floats, weights: Floats) -> Constants:
    """Fit the constants: least squares of log ratios, with a loss that grows linearly for outliers.

    Args:
        runs: measured rows.
        measured_rates: their tokens per second, shape (runs,).
        weights: weight of each row, shape (runs,).
    """
    from scipy.optimize import least_squares

    names = list(_BOUNDS)
    load, tokens = _loads(runs)
    start = [getattr(Constants(), name) for name in names]

    def differences(logs: Floats) -> Floats:
        constants = Constants(**dict(zip(names, np.exp(logs).tolist(), strict=True)))
        return np.sqrt(weights) * (np.log(_rates(load, tokens, constants)) - np.log(measured_rates))

    bounds = np.log(list(zip(*_BOUNDS.values(), strict=True)))
    found = least_squares(differences, np.log(start), bounds=bounds, loss="soft_l1", f_scale=0.1, max_nfev=60)
    return Constants(**dict(zip(names, np.exp(found.x).round(9).tolist(), strict=True)))
