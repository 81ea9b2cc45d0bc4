"""Learn the safety margin of a user's cluster from its own runs, starting from the margin of a released version.

The result is a posterior on a grid over a factor k >= 1 on needed memory and an offset b in GiB: a GPU of the cluster
behaves as if it had (usable - b) / k GiB. Each pair, combined with each explanation of the real rows, is weighted by
how well it explains the user's runs. The noise rates (jobs that failed for other reasons, settings without a column)
are learned as well. The result is adopted only if it improves the held-out log score by two standard errors. Traced
tensors do not change, so orderings are preserved.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from autoconf.errors import BadInput
from autoconf.memory.model import StackMemory
from autoconf.memory.reserve import Reserve
from autoconf.memory.units import GIB, Booleans, Floats, Integers
from autoconf.pipeline.calibration.real_rows import read_rows
from autoconf.pipeline.calibration.reserve import VIRTUAL_ROWS, Learned, learned_for, table_of
from autoconf.pipeline.calibration.user_runs import UserRuns, read_user_runs
from autoconf.pipeline.validation.compare_measured import CUBLAS_GIB
from autoconf.planner.rules import passing
from autoconf.predictor.autogluon import LABEL
from autoconf.predictor.predictor import Predictor

FACTORS = 1 + np.concatenate([np.arange(0, 0.1, 0.005), np.arange(0.1, 0.301, 0.02)])  # k
SHIFTS_GIB = np.arange(-3.0, 10.01, 0.5)  # b
_NO_DIFFERENCE = 0.5  # prior probability of k = 1, and of b = 0
_TYPICAL_SHIFT_GIB, _TYPICAL_FACTOR = 3.0, 0.1  # larger differences are less likely, exponentially
_EXPLANATIONS = 25  # of those of the real rows, evenly spaced

# Noise rates, equally likely: of jobs that fail although they fit, of jobs that finish although they do not fit, and of
# runs whose peak of used memory was missed between two samples.
_FAIL = np.array([0.003, 0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3])
_FINISH = np.array([0.003, 0.01, 0.03, 0.06, 0.1, 0.15])
_UNSEEN = np.array([0.003, 0.03, 0.1, 0.3])
# The log of the ratio of measured peaks to k times the traced ones has a Student's t distribution with these scales.
_SCALES = np.geomspace(0.002, 0.3, 12)
_FREEDOM = 3.0

_BIN = 0.5  # of log odds; runs are counted in bins of log odds
_BINS = 25  # from -6 to 6
_LIKELY = 1 / (1 + np.exp(-_BIN * (np.arange(_BINS) - _BINS // 2)))
_FOLDS = 10
_STANDARD_ERRORS = 2.0
_DRAWS = 500
_AT_ONCE = 2_000  # rows
_SEED = 20261125


Counts = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Cluster:
    """The margin learned for a cluster, and its score on held-out runs."""

    adopted: bool  # False: the runs give no reason to change the version's margin
    sentence: str  # whether it was adopted, and the gain
    reserve: Reserve  # for the card; the version's own if nothing was adopted
    training_table: pd.DataFrame | None  # for ``predictors.fit``; None: the version's own
    learned: dict[str, float]  # the posterior, adopted or not: k, b, probability of no difference, noise rates
    report: list[dict[str, Any]]  # rows (their kind), count
    ignored: list[str]  # columns
    evaluation: list[dict[str, Any]]  # scores on held-out rows before and after


def learn_cluster(predictor: Predictor, table: pd.DataFrame, source: str) -> Cluster:
    """Learn the safety margin of a cluster.

    Args:
        predictor: predictor of the version to start from; it may have more models.
        table: runs from ``tables.read_table``, with the columns of ``read_user_runs``.
        source: the name of the table in messages.

    Raises:
        BadInput: the table is not a table of runs, or no run is in the version's domain.
    """
    if predictor.card.reserve is None or not isinstance(predictor.memory, StackMemory):
        raise BadInput(f"version {predictor.card.version} has no learned safety margin; versions since 2.0.0 have one")
    measured = read_user_runs(predictor, table, source)
    evidence = _Evidence(predictor, measured)
    before, after = _held_out(predictor, measured, evidence)
    gains = pd.Series(after.scores - before.scores).groupby(measured.runs["job"].to_numpy()).sum().to_numpy()
    gain = float(gains.sum())
    error = float(np.sqrt(len(gains)) * gains.std(ddof=1)) if len(gains) > 1 else np.inf
    adopted = gain > _STANDARD_ERRORS * error
    posterior = evidence.posterior(evidence.counts.sum(0), evidence.peaks.sum(0))
    learned = posterior.learned(evidence)
    sentence = (
        f"{'adopted' if adopted else 'not adopted: the safety margin does not change'}; held-out runs are predicted "
        f"{abs(gain):.1f} nats {'better' if gain > 0 else 'worse'} in all, with a standard error of {error:.1f}, and "
        f"{_STANDARD_ERRORS:g} of these are required"
    )
    return Cluster(
        adopted=adopted,
        sentence=sentence,
        reserve=learned.reserve() if adopted else predictor.card.reserve,
        training_table=_training_table(learned) if adopted else None,
        learned=posterior.summary(),
        report=measured.report,
        ignored=measured.ignored,
        evaluation=[
            before.row(f"before, version {predictor.card.version}", measured.runs),
            after.row("after, learned from the others", measured.runs),
        ],
    )


def _training_table(learned: Learned) -> pd.DataFrame:
    """Only virtual rows, because the noise of a user's runs is not the memory of the cluster."""
    return table_of(learned, read_rows()[:0], np.random.default_rng(_SEED), VIRTUAL_ROWS)


# --- likelihood of the hypotheses -------------------------------------------------------------------------------------


class _Hypotheses(NamedTuple):
    """Parameters of the hypotheses; each array is flat, from shape (factors, shifts, explanations)."""

    factor: Floats
    shift: Floats
    explanation: Integers
    log_prior: Floats


class _Evidence:
    """Counts of runs by kind and fold, and by the log odds that every hypothesis gives them.

    Kinds are: failed, finished, and finished with a share of the GPU that was never in use.
    """

    def __init__(self, predictor: Predictor, measured: UserRuns) -> None:
        assert predictor.card.reserve is not None and isinstance(predictor.memory, StackMemory)
        runs, candidates = measured.runs, measured.candidates
        place = candidates.rows, candidates.gpus, candidates.tokens_per_gpu
        self.held, self.activations = predictor.memory.deciding_gib(*place, predictor.card.reserve).T
        self.several = candidates.gpus > 1
        in_use = runs["in_use_share"].to_numpy()
        usable = candidates.usable_gib * np.where(np.isnan(in_use), 1.0, in_use)
        self.usable = predictor.for_pytorch_gib(usable, candidates.gpus)
        self.median_usable_gib = float(np.median(candidates.usable_gib))
        kinds = np.where(runs[LABEL] == 0, 0, np.where(np.isnan(in_use), 1, 2))
        self.folds = runs["job"].rank(method="dense").to_numpy(int) % _FOLDS
        self.explanations = _thinned(learned_for(predictor.card))
        self.hypotheses = self._hypotheses()
        self.counts = self._counts(kinds)
        peaks = predictor.memory.peak_bytes(*place) / GIB + CUBLAS_GIB
        self.peak_ratios = np.log(runs["allocated_gib"].to_numpy() / peaks)
        self.peak_terms = _student(self.peak_ratios)  # (rows, factors, scales)
        self.peaks = np.stack([self.peak_terms[self.folds == fold].sum(0) for fold in range(_FOLDS)])

    def _hypotheses(self) -> _Hypotheses:
        """All hypotheses; none has a negative margin."""
        factor, shift, explanation = (
            of.ravel() for of in np.meshgrid(FACTORS, SHIFTS_GIB, np.arange(_EXPLANATIONS), indexing="ij")
        )
        priors = []
        for values, none, typical in ((FACTORS, 1.0, _TYPICAL_FACTOR), (SHIFTS_GIB, 0.0, _TYPICAL_SHIFT_GIB)):
            others = np.where(values == none, 0.0, np.exp(-np.abs(values - none) / typical) * np.gradient(values))
            others *= (1 - _NO_DIFFERENCE) / others.sum()
            priors.append(np.log(np.where(values == none, _NO_DIFFERENCE, others)))
        log_prior = np.add.outer(*priors).repeat(_EXPLANATIONS)
        too_little = np.min([base[explanation] for base, _, _ in self.explanations.values()], axis=0) + shift < 0
        return _Hypotheses(factor, shift, explanation, np.where(too_little, -np.inf, log_prior))

    def _counts(self, kinds: Integers) -> Counts:
        """Shape (folds, kinds, hypotheses, bins of log odds)."""
        total = len(self.hypotheses.factor)
        counts = np.zeros((_FOLDS, 3, total, _BINS), np.float32)
        one_factor = len(SHIFTS_GIB) * _EXPLANATIONS
        for fold, kind in itertools.product(range(_FOLDS), range(3)):
            rows = np.flatnonzero((self.folds == fold) & (kinds == kind))
            for some in np.array_split(rows, len(rows) // _AT_ONCE + 1):
                base, share, width = self._of_rows(some)
                wanted = base + share * self.activations[some] + self.held[some]  # (explanations, rows)
                for index, factor in enumerate(FACTORS):
                    has = (self.usable[some] - SHIFTS_GIB[:, None]) / factor  # (shifts, rows)
                    odds = (has[:, None] - wanted) / (width * _BIN)
                    bins = np.clip(np.rint(odds), -(_BINS // 2), _BINS // 2).astype(np.int64) + _BINS // 2
                    places = bins.reshape(one_factor, -1) + _BINS * np.arange(one_factor)[:, None]
                    found = np.bincount(places.ravel(), minlength=one_factor * _BINS)
                    counts[fold, kind, index * one_factor : (index + 1) * one_factor] += found.reshape(-1, _BINS)
        return counts

    def _of_rows(self, rows: Integers) -> list[Floats]:
        one, several = self.explanations[False], self.explanations[True]
        return [np.where(self.several[rows], s[:, None], o[:, None]) for o, s in zip(one, several, strict=True)]

    def posterior(self, counts: Counts, peaks: Floats) -> _Posterior:
        """The posterior from counts, shape (kinds, hypotheses, bins), and terms of peaks, shape (factors, scales)."""
        failed, finished, seen = counts
        fail, finish, unseen = _FAIL[:, None], _FINISH[None, :], _UNSEEN[None, :]

        def log_likelihood(of: Counts, if_fits: Floats, if_not: Floats) -> Floats:
            terms = np.log(np.multiply.outer(if_fits, _LIKELY) + np.multiply.outer(if_not, 1 - _LIKELY))
            return of @ terms.reshape(-1, _BINS).T

        shape = len(_FAIL), len(_FINISH), len(_UNSEEN)
        outcome = log_likelihood(failed, fail + 0 * finish, 1 - finish + 0 * fail)
        outcome += log_likelihood(finished, 1 - fail + 0 * finish, finish + 0 * fail)
        in_use = log_likelihood(seen, 1 - fail + 0 * unseen, unseen + 0 * fail)
        both = outcome.reshape(-1, *shape[:2], 1) + in_use.reshape(-1, shape[0], 1, shape[2])
        of_peaks = np.logaddexp.reduce(peaks, axis=1).repeat(len(SHIFTS_GIB) * _EXPLANATIONS)
        log_weights = both + (self.hypotheses.log_prior + of_peaks)[:, None, None, None]
        weights = np.exp(log_weights - log_weights.max())
        return _Posterior(self.hypotheses, weights / weights.sum(), peaks)


def _thinned(learned: Learned) -> dict[bool, tuple[Floats, Floats, Floats]]:
    """Some explanations of the real rows, evenly spaced; they are sorted by their bases."""
    count = len(learned.explanations[True][0])
    which = ((np.arange(_EXPLANATIONS) + 0.5) * count / _EXPLANATIONS).astype(int)
    return {several: (of[0][which], of[1][which], of[2][which]) for several, of in learned.explanations.items()}


def _student(ratios: Floats) -> Floats:
    """Log density, up to a constant, of the ratio of each run's measured peak to its traced one; 0 without a peak.

    A run that held less than k times its traced peak is evidence for a smaller k, which is at least 1.
    """
    off = (ratios[:, None, None] - np.log(FACTORS)[:, None]) / _SCALES
    terms = -np.log(_SCALES) - (_FREEDOM + 1) / 2 * np.log1p(off**2 / _FREEDOM)
    return np.where(np.isnan(ratios)[:, None, None], 0.0, terms)


@dataclass(frozen=True)
class _Posterior:
    """The probabilities of hypotheses and noise rates; ``weights`` has shape (hypotheses, fail, finish, unseen)."""

    hypotheses: _Hypotheses
    weights: Floats
    peaks: Floats

    def learned(self, evidence: _Evidence) -> Learned:
        """The hypotheses as explanations of the margin on a GPU with the median usable memory.

        A job fits if (usable - b) / k - peak exceeds base + share x activations. If a share s of the peak must stay
        free as well, the free memory is usable - (1 + s) x peak. So each hypothesis becomes a base, a share and a
        width again, all multiplied by 1 + s.
        """
        of = self.hypotheses
        weights = self.weights.sum((1, 2, 3))
        on_top = float(weights @ of.factor) - 1
        cumulative = np.cumsum(weights)
        drawn = np.searchsorted(cumulative, cumulative[-1] * (np.arange(_DRAWS) + 0.5) / _DRAWS)
        usable = evidence.median_usable_gib
        moved = usable - (1 + on_top) * (usable - of.shift[drawn]) / of.factor[drawn]
        found = {}
        for several, (base, share, width) in evidence.explanations.items():
            which = of.explanation[drawn]
            found[several] = (
                (1 + on_top) * base[which] + moved,
                (1 + on_top) * share[which],
                (1 + on_top) * width[which],
            )
        return Learned(found, on_top)

    def summary(self) -> dict[str, float]:
        of, weights = self.hypotheses, self.weights.sum((1, 2, 3))
        same = (of.factor == 1) & (of.shift == 0)
        values = {
            "factor on needed memory": weights @ of.factor,
            "offset in GiB": weights @ of.shift,
            "probability of no difference": weights[same].sum(),
            "rate of failures for other reasons": self.weights.sum((0, 2, 3)) @ _FAIL,
            "rate of finishes that do not fit": self.weights.sum((0, 1, 3)) @ _FINISH,
            "rate of peaks missed by sampling": self.weights.sum((0, 1, 2)) @ _UNSEEN,
        }
        return {name: round(float(value), 4) for name, value in values.items()}


# --- held out ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Judged:
    """Predictions about held-out runs, and the log probabilities of their outcomes; shape (runs,)."""

    predicted: Booleans
    scores: Floats

    def row(self, name: str, runs: pd.DataFrame) -> dict[str, Any]:
        finished = runs[LABEL].to_numpy() == 1
        return {
            "held-out measured rows": name,
            "rows": len(runs),
            "false positives": int((self.predicted & ~finished).sum()),
            "false negatives": int((~self.predicted & finished).sum()),
            "log score": round(float(self.scores.mean()), 4),
        }


def _held_out(predictor: Predictor, measured: UserRuns, evidence: _Evidence) -> tuple[_Judged, _Judged]:
    """Score the unchanged version, and the margin learned from the other folds, on every run; folds share no job.

    The score is about decisions, because users get decisions: the probability of a run's outcome is the frequency of
    this outcome among runs of the other folds with the same decision.
    """
    assert predictor.card.reserve is not None
    finished = measured.runs[LABEL].to_numpy() == 1
    before = _said(predictor, measured, predictor.card.reserve)
    after = before.copy()
    scores = np.zeros((2, len(finished)))
    same = np.concatenate([[0.0], np.full(len(FACTORS) - 1, -np.inf)])  # k = 1
    counts, peaks = evidence.counts.sum(0), evidence.peaks.sum(0)
    for fold in range(_FOLDS):
        unseen = evidence.folds == fold
        if not unseen.any():
            continue
        known_peaks = peaks - evidence.peaks[fold]
        posterior = evidence.posterior(counts - evidence.counts[fold], known_peaks)
        learned = _said(predictor, measured, posterior.learned(evidence).reserve())
        after[unseen] = learned[unseen]
        of_factors = np.log(np.maximum(_marginal(posterior), 1e-300)) - np.logaddexp.reduce(known_peaks, axis=1)
        for scored, predicted, log_factors in ((scores[0], before, same), (scores[1], learned, of_factors)):
            scored[unseen] = _log_score(predicted, finished, unseen) + _peak_score(
                evidence.peak_terms[unseen], log_factors[:, None] + known_peaks
            )
    return _Judged(before, scores[0]), _Judged(after, scores[1])


def _marginal(posterior: _Posterior) -> Floats:
    return posterior.weights.reshape(len(FACTORS), -1).sum(1)


def _said(predictor: Predictor, measured: UserRuns, reserve: Reserve) -> Booleans:
    """Whether runs are predicted to fit under a safety margin, which is the threshold of predictors."""
    card = predictor.card.model_copy(update={"reserve": reserve})
    asked = Predictor(card, predictor.memory, None).features(measured.candidates)
    return (asked["headroom_gib"].to_numpy() >= 0) & passing(measured.candidates)


def _log_score(predicted: Booleans, finished: Booleans, unseen: Booleans) -> Floats:
    """Log scores of the outcomes of unseen runs, from how often known runs with the same decision finish."""
    chances = np.empty(2)
    for answer in (False, True):
        known = finished[~unseen & (predicted == answer)]
        chances[int(answer)] = (known.sum() + 1) / (len(known) + 2)
    chance = chances[predicted[unseen].astype(int)]
    return np.log(np.where(finished[unseen], chance, 1 - chance))


def _peak_score(terms: Floats, log_weights: Floats) -> Floats:
    """Log scores of each run's peak under weighted factors and scales; the weights need not add up to 1."""
    log_weights = log_weights - np.logaddexp.reduce(log_weights, axis=None)
    return np.logaddexp.reduce((terms + log_weights).reshape(len(terms), -1), axis=1)
