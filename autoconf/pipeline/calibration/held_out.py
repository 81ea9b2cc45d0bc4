"""Compare methods on held-out real runs: constant safety margins and predictors.

``python -m autoconf.pipeline.calibration.held_out`` prints both tables. Runs are held out by table or by model; methods
learn from the other runs only. (Some jobs are in two tables; no run of a held-out model is among the others.)
"""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import typer

from autoconf.memory.units import Booleans, Floats
from autoconf.pipeline.calibration.real_rows import read_rows
from autoconf.pipeline.calibration.reserve import (
    THRESHOLD,
    Learned,
    features,
    free_gib,
    learn,
    logistic,
    table_of,
    virtual_rows,
)
from autoconf.pipeline.report import markdown
from autoconf.pipeline.validation.compare_measured import RESERVE
from autoconf.predictor import autogluon as autogluon_adapter
from autoconf.predictor.autogluon import LABEL
from autoconf.predictor.predictor import MONOTONE

_SPLITS = ("table", "model")
_NEAR_GIB = 5.0  # from the margin, on either side, where it is uncertain whether a run fits
_VIRTUAL_ROWS = 30_000  # fewer than a version's: 56 predictors are trained
_JOB = ["table", "model", "method", "stack", "usable_gib", "tokens"]

# Constant margin in GiB, and margin as a share of activations, by whether there are several GPUs.
_Constants = Mapping[bool, tuple[float, float]]
VERSION_1_1_0: _Constants = {False: (1.5, 0.0), True: (3.1, 0.0)}

Headroom = Callable[[pd.DataFrame], Floats]  # rows -> GiB beyond the margin


class Fold(NamedTuple):
    """Real rows to learn from, what was learned from them, and the held-out rows."""

    known: pd.DataFrame
    learned: Learned
    unseen: pd.DataFrame


class DecisionRule(NamedTuple):
    """A rule that predicts whether runs fit."""

    name: str
    probabilities: Callable[[Fold], Floats]  # of fitting, for each unseen row
    threshold: float


def _step(headroom: Headroom, fold: Fold) -> Floats:
    """A step at headroom 0. Its width is fitted to the known rows, so that it has a finite log loss."""
    widths = np.geomspace(0.05, 5, 20)[:, None]
    beyond = headroom(fold.known) / widths
    log_likelihood = -np.logaddexp(0, np.where(fold.known[LABEL] == 1, -beyond, beyond)).sum(1)
    weights = np.exp(log_likelihood - log_likelihood.max())
    return weights @ logistic(headroom(fold.unseen) / widths) / weights.sum()


def constant(constants: _Constants) -> Callable[[Fold], Floats]:
    """A method with given constants, which were chosen with knowledge of all rows, including the held-out ones."""

    def headroom(rows: pd.DataFrame) -> Floats:
        base, share = (rows["number_gpus"].gt(1).map({s: c[i] for s, c in constants.items()}) for i in (0, 1))
        return (free_gib(rows) - base - share * rows["activations_gib"]).to_numpy()

    return functools.partial(_step, headroom)


def learned_constant(probability: float) -> Callable[[Fold], Floats]:
    """A method with a step at the margin learned from the known rows for a probability."""

    def probabilities(fold: Fold) -> Floats:
        reserve = fold.learned.reserve(probability)
        return _step(lambda rows: features(rows, reserve)["headroom_gib"].to_numpy(), fold)

    return probabilities


def curve(fold: Fold) -> Floats:
    """The curve that labels virtual rows, used without a predictor."""
    rows = fold.unseen
    columns = (free_gib(rows), rows["activations_gib"], rows["number_gpus"])
    return fold.learned.probabilities(*(column.to_numpy() for column in columns))


def _predictor(table: pd.DataFrame, monotone: Mapping[str, int], asked: pd.DataFrame) -> Floats:
    with tempfile.TemporaryDirectory() as scratch:
        autogluon_adapter.fit(table, Path(scratch) / "predictor", monotone)
        loaded = autogluon_adapter.load_tabular(Path(scratch) / "predictor", "held out")
        return loaded.predict_proba(asked[[*monotone]], as_pandas=False, as_multiclass=False)


def as_trained(fold: Fold) -> Floats:
    """The predictor of a version."""
    table = table_of(fold.learned, fold.known, np.random.default_rng(0), _VIRTUAL_ROWS)
    return _predictor(table, MONOTONE, features(fold.unseen, fold.learned.reserve()))


def more_features(virtual: int, weight: int) -> Callable[[Fold], Floats]:
    """A predictor with more features; every real row counts ``weight`` times."""
    monotone = {**MONOTONE, "free_gib": 1, "activation_share": -1, "number_gpus": 0, "mixture_of_experts": -1}

    def probabilities(fold: Fold) -> Floats:
        reserve, generator = fold.learned.reserve(), np.random.default_rng(0)

        def with_more_features(rows: pd.DataFrame) -> pd.DataFrame:
            return features(rows, reserve).assign(
                free_gib=free_gib(rows).to_numpy(),
                activation_share=(rows["activations_gib"] / rows["usable_gib"]).to_numpy(),
                number_gpus=rows["number_gpus"].to_numpy(),
                mixture_of_experts=rows["mixture_of_experts"].to_numpy(),
            )

        drawn = virtual_rows(fold.learned, generator, virtual)
        drawn = drawn.assign(mixture_of_experts=generator.integers(0, 2, virtual))
        both = pd.concat([drawn, *[fold.known] * weight], ignore_index=True)
        return _predictor(
            with_more_features(both).assign(**{LABEL: both[LABEL]}), monotone, with_more_features(fold.unseen)
        )

    return probabilities


AS_TRAINED = DecisionRule("predictor: headroom, sharded", as_trained, THRESHOLD)
# All of these are in the card of 2.0.0 and in docs/versions/validation.md, which argues with them.
RULES = (
    DecisionRule("constant of 1.1.0 *", constant(VERSION_1_1_0), 0.5),
    DecisionRule("constant with 0.22 of activations *", constant(RESERVE), 0.5),
    DecisionRule("constant, in the middle of what runs allow", learned_constant(0.5), 0.5),
    DecisionRule("constant, where 9 in 10 explanations fit", learned_constant(THRESHOLD), 0.5),
    DecisionRule("curve of the explanations", curve, THRESHOLD),
    AS_TRAINED,
    DecisionRule("predictor: six features", more_features(_VIRTUAL_ROWS, 1), THRESHOLD),
    DecisionRule("predictor: six features, real rows 20 times", more_features(_VIRTUAL_ROWS, 20), THRESHOLD),
    DecisionRule("predictor: six features, real rows alone", more_features(0, 1), THRESHOLD),
)


@functools.cache
def _fold(split: str, name: str) -> Fold:
    rows = read_rows()
    unseen = rows[split] == name
    return Fold(rows[~unseen], learn(rows[~unseen]), rows[unseen])


@functools.cache
def held_out(rule: DecisionRule, split: str) -> Floats:
    """The probability that a rule gives each real row, having learned from other tables or models alone."""
    rows = read_rows()
    predicted = np.empty(len(rows))
    for name in rows[split].unique():
        predicted[(rows[split] == name).to_numpy()] = rule.probabilities(_fold(split, name))
    return predicted


def side_by_side(rules: tuple[DecisionRule, ...] = RULES) -> list[dict[str, Any]]:
    """A row for each rule and each split: log loss, wrong decisions, GPUs beyond need."""
    rows = read_rows()
    near = features(rows, learn(rows).reserve())["headroom_gib"].abs().to_numpy() <= _NEAR_GIB
    found = []
    for split, rule in itertools.product(_SPLITS, rules):
        probability = held_out(rule, split)
        loss = log_loss(rows[LABEL].to_numpy(), probability)
        predicted = probability >= rule.threshold
        true = rows[LABEL].to_numpy() == 1
        found.append(
            {
                "held out by": split,
                "way": rule.name,  # as the released cards call it
                f"log loss, {len(rows)} runs": round(float(loss.mean()), 4),
                f"log loss, the {near.sum()} near the reserve": round(float(loss[near].mean()), 3),
                "failed, said to fit": int((predicted & ~true).sum()),
                "finished, said not to": int((~predicted & true).sum()),
                **beyond_need(rows, predicted),
            }
        )
    return found


def log_loss(fits: Floats, probability: Floats) -> Floats:
    """The log loss of each run, in nats; probabilities are at least 1 in 10,000.

    >>> log_loss(np.array([1, 0]), np.array([0.5, 0.0])).round(4).tolist()
    [0.6931, 0.0001]
    """
    sure = np.clip(probability, 1e-4, 1 - 1e-4)
    return -np.where(fits == 1, np.log(sure), np.log(1 - sure))


def beyond_need(rows: pd.DataFrame, predicted: Booleans) -> dict[str, int]:
    """GPUs recommended beyond need, over jobs that ran on several numbers of GPUs and finished on one of them.

    A job needs the smallest number of GPUs on which it finished. Its recommendation is the smallest number, of those on
    which it ran, on which it is predicted to fit; without such a number it is refused.
    """
    asked = rows.assign(predicted=predicted, tokens=rows["tokens_per_gpu"] * rows["number_gpus"])
    extra = short = refused = 0
    for _, job in asked.groupby(_JOB):
        finished, fitting = job.loc[job[LABEL] == 1, "number_gpus"], job.loc[job["predicted"], "number_gpus"]
        if job["number_gpus"].nunique() == 1 or finished.empty:
            continue
        if fitting.empty:
            refused += 1
        else:
            extra += max(0, int(fitting.min() - finished.min()))
            short += int(fitting.min() < finished.min())
    return {"GPUs beyond need": extra, "jobs given too few": short, "jobs refused": refused}


def real_calibration(probabilities: Mapping[str, Floats] | None = None) -> list[dict[str, Any]]:
    """Compare the predicted probability with the share of held-out runs that finished.

    Args:
        probabilities: that of each real row, for each split; by default those of version 2.0.0's predictor.
    """
    rows = read_rows()
    found = []
    for split in _SPLITS:
        probability = held_out(AS_TRAINED, split) if probabilities is None else probabilities[split]
        for low, high in itertools.pairwise((0, 0.01, 0.1, 0.5, 0.9, 0.99, 1.0000001)):
            inside = (probability >= low) & (probability < high)
            if inside.any():
                found.append(
                    {
                        "held out by": split,
                        "predicted": f"{low:g} to {min(high, 1):g}",
                        "runs": int(inside.sum()),
                        "mean prediction": round(float(probability[inside].mean()), 4),
                        "share that finished": round(float(rows.loc[inside, LABEL].mean()), 4),
                    }
                )
    return found


def main() -> None:
    """Print both tables."""
    for table in (side_by_side(), real_calibration()):
        print(markdown(table), end="\n\n")


if __name__ == "__main__":
    typer.run(main)
