"""Learn the safety margin and the probability of fitting from real runs.

A run fits if the memory that its peak leaves free exceeds a base plus a share of its activations. Both are unknown, so
the module computes a grid posterior over (base, share, width) from finished and failed runs. ``learn`` returns draws
from it, and the probability that a job fits is its average over the draws. ``training_rows`` makes the training table
of a predictor from them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from autoconf.memory.fragmentation import OutsidePyTorch, kind_named
from autoconf.memory.reserve import Reserve
from autoconf.memory.units import Floats, Integers
from autoconf.pipeline.calibration.real_rows import read_rows
from autoconf.predictor.autogluon import LABEL
from autoconf.predictor.cards import Card

# A false positive costs a failed job, a false negative only one more GPU, so the threshold is high.
THRESHOLD = 0.9


@dataclass(frozen=True)
class Grid:
    """A uniform prior over explanations.

    Attributes:
        bases: GiB, the same for one GPU and for several.
        shares: of activations, or of fragmentation, separately for one GPU and for several.
        widths: the variation between jobs, as the width in GiB of a logistic curve, uniform in its logarithm.
    """

    bases: tuple[float, ...] = tuple(np.linspace(0, 6, 121).tolist())
    shares: tuple[float, ...] = tuple(np.linspace(0, 0.4, 81).tolist())
    widths: tuple[float, ...] = tuple(np.geomspace(0.05, 1, 10).tolist())


OF_ACTIVATIONS = Grid()
# Of what jobs need beyond the fragmentation of their kind, as the width of a logistic curve in GiB. It is narrow: how
# much fragmentation varies is in the surfaces, which hold for most replays.
_WIDTH_BEYOND = 0.1
_DRAWS = 500

VIRTUAL_ROWS = 120_000  # LightGBM's threshold then differs from the margin by less than 0.05 GiB
# Grid points of the margin; a B200 has 178 GiB.
_ACTIVATIONS = (0.0, 10.0, 20.0, 30.0, 40.0, 60.0, 80.0, 100.0, 140.0, 180.0)
_MOST_ACTIVATIONS = 80.0  # of virtual rows; real runs give no information beyond
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Learned:
    """Explanations of real runs, by whether there are several GPUs: base, share and width, each of shape (draws,)."""

    explanations: dict[bool, tuple[Floats, Floats, Floats]]
    peak_share: float = 0.0  # share of the peak that must stay free as well; 0 if runs hold the traced memory

    def probabilities(self, free_gib: Floats, activations_gib: Floats, gpus: Integers) -> Floats:
        """The probability that jobs fit, shape (jobs,); never falls with free memory, never rises with activations.

        Args:
            free_gib: usable memory less the traced peak and its share.
            activations_gib: the part of the peak that grows with the tokens, >= 0.
            gpus: number of GPUs, >= 1.
        """
        found = np.empty(len(free_gib))
        for several, (base, share, width) in self.explanations.items():
            jobs = np.flatnonzero((np.asarray(gpus) > 1) == several)
            for part in np.array_split(jobs, len(jobs) // 10_000 + 1):
                beyond = free_gib[part, None] - base - share * activations_gib[part, None]
                found[part] = logistic(beyond / width).mean(1)
        return found

    def reserve(self, probability: float = THRESHOLD, at: tuple[float, ...] = _ACTIVATIONS) -> Reserve:
        """The margin with which jobs fit with a probability in (0, 1), on a grid of activations in GiB."""
        activations = np.array(at)
        one, several = (self._needed_gib(probability, activations, np.full(len(activations), n)) for n in (1, 2))
        # Several GPUs add NCCL's buffers and remove nothing; without this, draws differ by a hundredth of a GiB.
        return Reserve(at, one, tuple(map(max, one, several)), self.peak_share)

    def _needed_gib(self, probability: float, activations_gib: Floats, gpus: Integers) -> tuple[float, ...]:
        too_little, enough = np.full(len(gpus), -100.0), np.full(len(gpus), 1000.0)
        for _ in range(30):
            free = (too_little + enough) / 2
            likely = self.probabilities(free, activations_gib, gpus) >= probability
            too_little, enough = np.where(likely, too_little, free), np.where(likely, free, enough)
        return tuple(enough.round(2).clip(min=0).tolist())


def learn(rows: pd.DataFrame, grid: Grid = OF_ACTIVATIONS) -> Learned:
    """Learn the margin from real rows.

    Args:
        rows: rows from ``real_rows.read_rows``. Repeated runs of a job with the same outcome count once.
        grid: the prior.

    >>> learned = learn(read_rows())
    >>> learned.probabilities(np.array([2.0, 4.0]), np.array([0.0, 0.0]), np.array([1, 1])).round(1).tolist()
    [0.4, 1.0]
    """
    jobs = pd.DataFrame({"free": free_gib(rows), "several": rows["number_gpus"] > 1}).join(
        rows[["activations_gib", LABEL, "model", "method"]]
    )
    jobs = jobs.drop_duplicates()
    log_likelihood = {several: _log_likelihood(jobs[jobs["several"] == several], grid) for several in (False, True)}
    # Runs on the other number of GPUs also inform base and width, summed over their shares.
    elsewhere = {several: np.logaddexp.reduce(of, axis=1, keepdims=True) for several, of in log_likelihood.items()}
    return Learned({several: _draw(of + elsewhere[not several], grid) for several, of in log_likelihood.items()})


def for_pytorch(rows: pd.DataFrame, outside: OutsidePyTorch) -> pd.DataFrame:
    """Real rows whose ``usable_gib`` is what is left for PyTorch."""
    left = outside.left_gib(rows["usable_gib"].to_numpy(), rows["number_gpus"].to_numpy())
    return rows.assign(usable_gib=left)


def kinds(rows: pd.DataFrame) -> list[str]:
    """The kind of each real run, as ``kind_of``: on several GPUs these runs used FSDP1."""
    pairs = zip(rows["number_gpus"], rows["method"], strict=True)
    return [kind_named("fsdp1" if gpus > 1 else "none", method) for gpus, method in pairs]


def beyond_fragmentation(one_gpu_gib: float, several_gpus_gib: float, probability: float = THRESHOLD) -> Learned:
    """An explanation by which a job needs its fragmentation, GiB for GiB, and a constant.

    Args:
        one_gpu_gib: the constant with which jobs on one GPU fit with a probability.
        several_gpus_gib: likewise on several GPUs.
        probability: the probability, in (0, 1).
    """
    odds = _WIDTH_BEYOND * math.log(probability / (1 - probability))
    needed = {False: one_gpu_gib, True: several_gpus_gib}
    # Several draws, all alike: what a cluster teaches is learned for each.
    ones = np.ones(_DRAWS)
    return Learned({several: ((base - odds) * ones, ones, _WIDTH_BEYOND * ones) for several, base in needed.items()})


def learned_for(card: Card) -> Learned:
    """What the margin of a version is by its activations, from real rows, or beyond its fragmentation."""
    if card.fragmentation is None or card.reserve is None:
        return learn(read_rows())
    constants = card.reserve.one_gpu_gib[0], card.reserve.several_gpus_gib[0]
    return beyond_fragmentation(*constants, card.threshold)


def free_gib(rows: pd.DataFrame) -> pd.Series:
    """The memory of each row's GPU that the traced peak leaves free."""
    return rows["usable_gib"] - rows["peak_gib"]


def _log_likelihood(jobs: pd.DataFrame, grid: Grid) -> Floats:
    """The log likelihood of every explanation, shape (bases, shares, widths)."""
    bases, shares, widths = (np.array(values) for values in (grid.bases, grid.shares, grid.widths))
    found = np.zeros((len(bases), len(shares), len(widths)))
    for free, activations, fits in jobs[["free", "activations_gib", LABEL]].itertuples(index=False):
        beyond = (free - bases[:, None] - shares * activations)[:, :, None] / widths
        found -= np.logaddexp(0, -beyond if fits else beyond)
    return found


def _draw(log_likelihood: Floats, grid: Grid) -> tuple[Floats, Floats, Floats]:
    """Draw explanations in proportion to their likelihood, systematically instead of at random."""
    weights = np.cumsum(np.exp(log_likelihood - log_likelihood.max()))
    drawn = np.searchsorted(weights, weights[-1] * (np.arange(_DRAWS) + 0.5) / _DRAWS)
    base, share, width = np.unravel_index(drawn, log_likelihood.shape)
    return np.array(grid.bases)[base], np.array(grid.shares)[share], np.array(grid.widths)[width]


def logistic(x: Floats) -> Floats:
    """The probability of log odds."""
    return 1 / (1 + np.exp(-np.clip(x, -500, 500)))


def features(rows: pd.DataFrame, reserve: Reserve) -> pd.DataFrame:
    """Compute the columns of ``predictor.MONOTONE`` from the memory columns and GPU counts of ``read_rows``."""
    kept = reserve.gib(rows["activations_gib"].to_numpy(), rows["number_gpus"].to_numpy())
    sharded = (rows["number_gpus"] > 1).to_numpy(float)
    kept = kept + reserve.peak_share * rows["peak_gib"].to_numpy()
    return pd.DataFrame({"headroom_gib": (free_gib(rows) - kept).to_numpy(), "sharded": sharded})


def virtual_rows(learned: Learned, generator: np.random.Generator, count: int) -> pd.DataFrame:
    """Virtual jobs over the whole range of GPU memory, most of them where it is uncertain whether they fit.

    Returns:
        ``number_gpus``, ``usable_gib``, ``peak_gib``, ``activations_gib`` and ``fits``.
    """
    gpus = 2 ** generator.integers(0, 5, count)
    # If the optimizer's step is the peak, there are no activations.
    activations = np.where(generator.random(count) < 0.2, 0.0, generator.uniform(0, _MOST_ACTIVATIONS, count))
    doubtful = generator.random(count) < 0.8
    headroom = np.where(doubtful, generator.uniform(-5, 3, count), generator.uniform(-80, 80, count))
    free = headroom + learned.reserve().gib(activations, gpus)
    # Labels are drawn systematically, so that in any interval of headroom the share that fits equals the probability.
    # Independent draws would need many times as many rows for the same accuracy.
    evenly = np.empty(count)
    evenly[np.lexsort((headroom, gpus > 1))] = (generator.random() + _GOLDEN * np.arange(count)) % 1
    usable = 80.0  # any value works, because features only depend on the remaining memory
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
    """The training table of a predictor: virtual rows, labeled by the learned probability, and the real rows.

    Args:
        generator: random generator for the virtual rows and their labels.
        count: number of virtual rows, >= 0.
        rows: real rows from ``real_rows.read_rows``; all by default.

    Returns:
        The columns of ``predictor.MONOTONE`` and ``fits``.

    >>> training_rows(np.random.default_rng(0), 1000).shape
    (1583, 3)
    """
    rows = read_rows() if rows is None else rows
    return table_of(learn(rows), rows, generator, count)


def table_of(learned: Learned, rows: pd.DataFrame, generator: np.random.Generator, count: int) -> pd.DataFrame:
    """The table of ``training_rows`` for real rows and what was learned from them."""
    both = pd.concat([virtual_rows(learned, generator, count), *([rows] if len(rows) else [])], ignore_index=True)
    return features(both, learned.reserve()).round(3).assign(**{LABEL: both[LABEL]})
