"""What must stay free on a GPU on top of the traced peak, learned from real runs: how likely a job is to fit.

A run fits where what its peak leaves free exceeds a base and a share of its activations. Neither is known. Real runs,
finished and failed, are explained by some pairs better than by others; ``learn`` draws pairs as often as they explain
the runs, and a job is as likely to fit as it does under these. ``training_rows`` is what a predictor learns that from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from autoconf.memory.reserve import Reserve
from autoconf.memory.units import Floats, Integers
from autoconf.pipeline.calibration.real_rows import read_rows
from autoconf.predictor.autogluon import LABEL

# A wrong "fits" costs a failed job, a wrong "no" one GPU more, so a job is said to fit only when that is all but sure.
THRESHOLD = 0.9

# Explanations that are equally likely before any run is seen: a base in GiB, the same for one GPU and for several; a
# share of activations, on one GPU and on several each its own; and how far jobs differ, as the width in GiB of a
# logistic curve, equally likely in its logarithm.
_BASES = np.linspace(0, 6, 121)
_SHARES = np.linspace(0, 0.4, 81)
_WIDTHS = np.geomspace(0.05, 1, 10)
_DRAWS = 500

VIRTUAL_ROWS = 120_000  # LightGBM's edge then strays from the reserve by less than 0.05 GiB
# Knots of the reserve; a B200 has 178 GiB.
_ACTIVATIONS = (0.0, 10.0, 20.0, 30.0, 40.0, 60.0, 80.0, 100.0, 140.0, 180.0)
_MOST_ACTIVATIONS = 80.0  # of virtual rows: real runs bound nothing beyond
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Learned:
    """Explanations of real runs, by whether there are several GPUs: base, share and width, each of shape (draws,)."""

    explanations: dict[bool, tuple[Floats, Floats, Floats]]
    peak_share: float = 0.0  # of the peak, which is not free either: 0 where runs are taken to hold what was traced

    def probabilities(self, free_gib: Floats, activations_gib: Floats, gpus: Integers) -> Floats:
        """How likely jobs are to fit, shape (jobs,): it cannot fall with free memory, nor rise with activations.

        Args:
            free_gib: usable memory less the traced peak and its share.
            activations_gib: of the peak, what grows with the tokens, >= 0.
            gpus: number of GPUs, >= 1.
        """
        found = np.empty(len(free_gib))
        for several, (base, share, width) in self.explanations.items():
            jobs = np.flatnonzero((np.asarray(gpus) > 1) == several)
            for part in np.array_split(jobs, len(jobs) // 10_000 + 1):
                beyond = free_gib[part, None] - base - share * activations_gib[part, None]
                found[part] = logistic(beyond / width).mean(1)
        return found

    def reserve(self, probability: float = THRESHOLD) -> Reserve:
        """What must stay free for jobs to fit with a probability, in (0, 1)."""
        activations = np.array(_ACTIVATIONS)
        one, several = (self._needed_gib(probability, activations, np.full(len(activations), n)) for n in (1, 2))
        # NCCL's buffers come with several GPUs, and nothing goes: draws differ by a hundredth of a GiB.
        return Reserve(_ACTIVATIONS, one, tuple(map(max, one, several)), self.peak_share)

    def _needed_gib(self, probability: float, activations_gib: Floats, gpus: Integers) -> tuple[float, ...]:
        too_little, enough = np.full(len(gpus), -100.0), np.full(len(gpus), 1000.0)
        for _ in range(30):
            free = (too_little + enough) / 2
            likely = self.probabilities(free, activations_gib, gpus) >= probability
            too_little, enough = np.where(likely, too_little, free), np.where(likely, free, enough)
        return tuple(enough.round(2).clip(min=0).tolist())


def learn(rows: pd.DataFrame) -> Learned:
    """Learn from real rows what must stay free.

    Args:
        rows: as ``real_rows.read_rows`` gives them. Repeated runs of a job that ended alike count once.

    >>> learned = learn(read_rows())
    >>> learned.probabilities(np.array([2.0, 4.0]), np.array([0.0, 0.0]), np.array([1, 1])).round(1).tolist()
    [0.4, 1.0]
    """
    jobs = pd.DataFrame({"free": free_gib(rows), "several": rows["number_gpus"] > 1}).join(
        rows[["activations_gib", LABEL, "model", "method"]]
    )
    jobs = jobs.drop_duplicates()
    log_likelihood = {several: _log_likelihood(jobs[jobs["several"] == several]) for several in (False, True)}
    # Whatever the other number of GPUs says of base and width counts as well, under all shares that it may have.
    elsewhere = {several: np.logaddexp.reduce(of, axis=1, keepdims=True) for several, of in log_likelihood.items()}
    return Learned({several: _draw(of + elsewhere[not several]) for several, of in log_likelihood.items()})


def free_gib(rows: pd.DataFrame) -> pd.Series:
    """What the traced peak leaves free of each row's GPU."""
    return rows["usable_gib"] - rows["peak_gib"]


def _log_likelihood(jobs: pd.DataFrame) -> Floats:
    """Of every explanation, shape (bases, shares, widths)."""
    found = np.zeros((len(_BASES), len(_SHARES), len(_WIDTHS)))
    for free, activations, fits in jobs[["free", "activations_gib", LABEL]].itertuples(index=False):
        beyond = (free - _BASES[:, None] - _SHARES * activations)[:, :, None] / _WIDTHS
        found -= np.logaddexp(0, -beyond if fits else beyond)
    return found


def _draw(log_likelihood: Floats) -> tuple[Floats, Floats, Floats]:
    """Explanations in proportion to their likelihood, evenly over the grid rather than by chance."""
    weights = np.cumsum(np.exp(log_likelihood - log_likelihood.max()))
    drawn = np.searchsorted(weights, weights[-1] * (np.arange(_DRAWS) + 0.5) / _DRAWS)
    base, share, width = np.unravel_index(drawn, log_likelihood.shape)
    return _BASES[base], _SHARES[share], _WIDTHS[width]


def logistic(x: Floats) -> Floats:
    """Probability by log odds."""
    return 1 / (1 + np.exp(-np.clip(x, -500, 500)))


def features(rows: pd.DataFrame, reserve: Reserve) -> pd.DataFrame:
    """The columns of ``predictor.MONOTONE`` for rows that have ``read_rows``'s columns of memory and number of GPUs."""
    kept = reserve.gib(rows["activations_gib"].to_numpy(), rows["number_gpus"].to_numpy())
    sharded = (rows["number_gpus"] > 1).to_numpy(float)
    kept = kept + reserve.peak_share * rows["peak_gib"].to_numpy()
    return pd.DataFrame({"headroom_gib": (free_gib(rows) - kept).to_numpy(), "sharded": sharded})


def virtual_rows(learned: Learned, generator: np.random.Generator, count: int) -> pd.DataFrame:
    """Jobs all over what a GPU may hold, most of them where it is not certain whether they fit.

    Returns:
        ``number_gpus``, ``usable_gib``, ``peak_gib``, ``activations_gib`` and ``fits``.
    """
    gpus = 2 ** generator.integers(0, 5, count)
    # Where the optimizer's step is the peak there are no activations.
    activations = np.where(generator.random(count) < 0.2, 0.0, generator.uniform(0, _MOST_ACTIVATIONS, count))
    doubtful = generator.random(count) < 0.8
    headroom = np.where(doubtful, generator.uniform(-5, 3, count), generator.uniform(-80, 80, count))
    free = headroom + learned.reserve().gib(activations, gpus)
    # Labels are drawn so that in any stretch of headroom as many fit as the probability says: independent draws would
    # need many times the rows to say it as exactly.
    evenly = np.empty(count)
    evenly[np.lexsort((headroom, gpus > 1))] = (generator.random() + _GOLDEN * np.arange(count)) % 1
    usable = 80.0  # whatever it is: features are what is left of it
    fits = evenly < learned.probabilities(free, activations, gpus)
    return pd.DataFrame(
        {
            "number_gpus": gpus,
            "usable_gib": usable,
            "peak_gib": (usable - free) / (1 + learned.peak_share),
            "activations_gib": activations,
            LABEL: fits.astype(int),
        }
    )


def training_rows(
    generator: np.random.Generator, count: int = VIRTUAL_ROWS, rows: pd.DataFrame | None = None
) -> pd.DataFrame:
    """The table that a predictor is trained on: virtual rows, labelled by what real ones teach, and these themselves.

    Args:
        generator: of the virtual rows and their labels.
        count: virtual rows, >= 0.
        rows: real ones, as ``real_rows.read_rows`` gives them; all by default.

    Returns:
        The columns of ``predictor.MONOTONE`` and ``fits``.

    >>> training_rows(np.random.default_rng(0), 1000).shape
    (1583, 3)
    """
    rows = read_rows() if rows is None else rows
    return table_of(learn(rows), rows, generator, count)


def table_of(learned: Learned, rows: pd.DataFrame, generator: np.random.Generator, count: int) -> pd.DataFrame:
    """What ``training_rows`` gives, of real rows that were learned from."""
    both = pd.concat([virtual_rows(learned, generator, count), *([rows] if len(rows) else [])], ignore_index=True)
    return features(both, learned.reserve()).round(3).assign(**{LABEL: both[LABEL]})
