"""Learn throughput from measured rows: fit the constants of the physics, then the correction with AutoGluon."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from autoconf.memory.units import Floats
from autoconf.pipeline.throughput.physics import Measured, fit_constants, rates
from autoconf.predictor import autogluon
from autoconf.speed.features import MONOTONE, features
from autoconf.speed.roofline import Constants
from autoconf.speed.version import LABEL, PREDICTOR, WEIGHT

# A single row moves the correction by at most this (a factor of e); such rows have causes of their own.
_LARGEST = 1.0


class Learned(NamedTuple):
    """Constants of the physics, and the rows that the correction is learned from."""

    constants: Constants
    table: pd.DataFrame  # the features, the label and the weight


def weights_of(models: pd.Series) -> Floats:
    """Weights of rows with mean 1: a model with many rows counts by the square root of their number, shape (rows,)."""
    weights: Floats = (1 / np.sqrt(models.map(models.value_counts()))).to_numpy(float)
    return weights / weights.mean()


def learn(runs: list[Measured], models: pd.Series, measured_rates: Floats) -> Learned:
    """Fit the constants and compute the rows for the correction.

    Args:
        runs: measured rows.
        models: the model of each row.
        measured_rates: tokens per second of each row, shape (runs,).
    """
    weights = weights_of(models)
    constants = fit_constants(runs, measured_rates, weights)
    correction = np.log(measured_rates / rates(runs, constants))
    table = feature_table(runs).assign(**{LABEL: np.clip(correction, -_LARGEST, _LARGEST), WEIGHT: weights})
    return Learned(constants, table)


def feature_table(runs: list[Measured]) -> pd.DataFrame:
    """The features of measured rows, with the columns of ``MONOTONE``."""
    rows = [features(run.shapes, run.method, run.stack, run.gpu, run.layout, run.work) for run in runs]
    return pd.DataFrame(rows, columns=list(MONOTONE))


def predicted(learned: Learned, runs: list[Measured], **settings: float) -> Floats:
    """Tokens per second of other rows with the learned correction, shape (runs,).

    Args:
        learned: what was learned.
        runs: the other rows.
        **settings: as in ``autogluon.fit_regression``.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / PREDICTOR
        autogluon.fit_regression(learned.table, LABEL, WEIGHT, place, MONOTONE, **settings)
        tabular = autogluon.load_tabular(place, "throughput")
        correction = tabular.predict(feature_table(runs), as_pandas=False)
    found: Floats = rates(runs, learned.constants) * np.exp(np.asarray(correction, float))
    return found
