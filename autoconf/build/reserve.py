"""What must stay free on a GPU beside the traced peak, learnt from real runs: how likely a job is to fit.

A run fits where what its peak leaves free, less a share of its activations, exceeds a reserve. Share and reserve are not
known: real runs, finished and failed, leave some values of them likelier than others. ``learn`` weighs them all, and the
probability of fitting is what they say together. ``training_rows`` is the table that a predictor learns it from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from autoconf.build.real_rows import read_rows
from autoconf.memory import Floats
from autoconf.predictors import LABEL

# The predictor's features, each with the direction in which it may move the probability of fitting.
MONOTONE = {"spare_gib": 1, "sharded": -1}

# What could be true before any run is seen, everything equally likely: GiB that must stay free, the same for one GPU and
# several; the share of activations that must, on one GPU and on several each; and how far jobs differ from each other
# (the width of a logistic curve in GiB, equally likely in its logarithm).
_RESERVES = np.linspace(0, 6, 121)
_SHARES = np.linspace(0, 0.4, 81)
_WIDTHS = np.geomspace(0.05, 1, 10)

_SPARE = np.linspace(-10, 20, 3001)  # where the probability is tabled; it is 0 and 1 beyond
VIRTUAL_ROWS = 60_000  # with fewer, LightGBM's edge strays from the curve's by more than 0.02 GiB
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Learnt:
    """How likely a job is to fit, by what its peak leaves free less a share of its activations."""

    share: dict[bool, float]  # of activations that must stay free, by whether there are several GPUs
    curve: Floats  # the probability at ``_SPARE``

    def spare_gib(self, rows: pd.DataFrame) -> Floats:
        """What is left of each row's GPU after the peak and the share of activations, shape (rows,)."""
        share = np.where(rows["number_gpus"] > 1, self.share[True], self.share[False])
        return (rows["usable_gib"] - rows["peak_gib"] - share * rows["activations_gib"]).to_numpy(float)

    def probabilities(self, spare_gib: Floats) -> Floats:
        """The probability of fitting, which cannot fall as ``spare_gib`` grows; shape (rows,)."""
        return np.interp(spare_gib, _SPARE, self.curve)

    def reserve_gib(self, probability: float) -> float:
        """GiB that must be spare for a job to fit with a probability, in (0, 1)."""
        return float(np.interp(probability, self.curve, _SPARE))

    def features(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The columns of ``MONOTONE`` for rows of ``real_rows.read_rows``."""
        sharded = (rows["number_gpus"] > 1).to_numpy(float)
        return pd.DataFrame({"spare_gib": self.spare_gib(rows), "sharded": sharded})


def learn(rows: pd.DataFrame) -> Learnt:
    """Learn from real rows what must stay free.

    Args:
        rows: as ``real_rows.read_rows`` gives them. Repeated runs of a job that ended alike count once.

    Returns:
        The shares' means, and the curve that all reserves and widths make together at these shares, weighted by how
        likely they leave the rows.

    >>> learnt = learn(read_rows())
    >>> learnt.share
    {False: 0.05, True: 0.23}
    """
    free = (rows["usable_gib"] - rows["peak_gib"]).rename("free")
    sharded = (rows["number_gpus"] > 1).rename("sharded")
    jobs = pd.concat([sharded, free, rows[["activations_gib", LABEL, "model", "method"]]], axis=1).drop_duplicates()
    by_sharding = {several: jobs[jobs["sharded"] == several] for several in (False, True)}
    # Shape (reserves, shares, widths) each.
    likelihood = {several: _log_likelihood(of, _SHARES) for several, of in by_sharding.items()}
    common = sum(_log_mean(of) for of in likelihood.values())
    share = {}
    for several, of in likelihood.items():
        weight = _weights(of - _log_mean(of) + common)
        share[several] = round(float((weight * _SHARES[:, None]).sum()), 2)
    at_shares = sum(_log_likelihood(of, np.array([share[several]])) for several, of in by_sharding.items())
    weight = _weights(at_shares)[:, 0]
    curve = sum(
        of_width @ _logistic((_SPARE - _RESERVES[:, None]) / width)
        for of_width, width in zip(weight.T, _WIDTHS, strict=True)
    )
    return Learnt(share, curve)


def _log_likelihood(jobs: pd.DataFrame, shares: Floats) -> Floats:
    found = np.zeros((len(_RESERVES), len(shares), len(_WIDTHS)))
    for free, activations, fits in jobs[["free", "activations_gib", LABEL]].itertuples(index=False):
        beyond = (free - _RESERVES[:, None] - shares * activations)[:, :, None] / _WIDTHS
        found -= np.logaddexp(0, -beyond if fits else beyond)
    return found


def _log_mean(log_likelihood: Floats) -> Floats:
    """Over shares."""
    return np.logaddexp.reduce(log_likelihood, axis=1, keepdims=True) - math.log(log_likelihood.shape[1])


def _weights(log_likelihood: Floats) -> Floats:
    weights = np.exp(log_likelihood - log_likelihood.max())
    return weights / weights.sum()


def _logistic(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-np.clip(x, -500, 500)))


def virtual_rows(learnt: Learnt, generator: np.random.Generator, count: int) -> pd.DataFrame:
    """Jobs all over what a GPU can have to spare, half of them where it is not certain whether they fit.

    Their labels are drawn so that in any stretch as many fit as the probability says: independent draws would need
    ten times the rows to say it as exactly.
    """
    uncertain = [learnt.reserve_gib(p) for p in (0.002, 0.998)]
    spare = np.concatenate([generator.uniform(*uncertain, count // 2), generator.uniform(-80, 80, count - count // 2)])
    spare = np.sort(spare).round(4)
    evenly = (generator.random() + _GOLDEN * np.arange(count)) % 1
    fits = (evenly < learnt.probabilities(spare)).astype(int)
    return pd.DataFrame({"spare_gib": spare, "sharded": generator.integers(0, 2, count).astype(float), LABEL: fits})


def training_rows(
    generator: np.random.Generator, count: int = VIRTUAL_ROWS, rows: pd.DataFrame | None = None
) -> pd.DataFrame:
    """The table that a predictor is trained on: virtual rows, labelled by what real ones teach, and these themselves.

    Args:
        generator: of the virtual rows and their labels.
        count: virtual rows, >= 2.
        rows: real ones, as ``real_rows.read_rows`` gives them; all by default.

    Returns:
        The columns of ``MONOTONE`` and ``fits``.

    >>> training_rows(np.random.default_rng(0), 1000).shape
    (1583, 3)
    """
    rows = read_rows() if rows is None else rows
    learnt = learn(rows)
    real = learnt.features(rows).assign(**{LABEL: rows[LABEL].to_numpy()})
    return pd.concat([virtual_rows(learnt, generator, count), real], ignore_index=True)
