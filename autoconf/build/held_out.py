"""What is said of real runs that training never saw: a constant reserve and predictors, side by side.

``python -m autoconf.build.held_out`` prints both tables. Runs are held out by table and by model; whatever learns from runs
learns from the others alone.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from autoconf import predictors
from autoconf.build.readme import markdown
from autoconf.build.real_rows import read_rows
from autoconf.build.reserve import MONOTONE, VIRTUAL_ROWS, learn, training_rows, virtual_rows
from autoconf.memory import Floats
from autoconf.predictors import LABEL
from autoconf.rules import Booleans

THRESHOLD = 0.9
_SPLITS = ("table", "model")
_NEAR_GIB = 5.0  # from the reserve, on either side: where it is not plain whether a run fits
_JOB = ["table", "model", "method", "stack", "usable_gib", "tokens"]

# GiB that must stay free, and the share of activations that must, by whether there are several GPUs.
Reserves = Mapping[bool, tuple[float, float]]
VERSION_1_1_0: Reserves = {False: (1.5, 0.0), True: (3.1, 0.0)}
READ_OFF: Reserves = {False: (3.0, 0.0), True: (3.1, 0.22)}  # off all runs, those that judge it among them

Says = Callable[[pd.DataFrame, pd.DataFrame], Floats]  # (rows to learn from, rows to judge) -> probability of fitting


class Way(NamedTuple):
    """A way to say whether runs fit."""

    name: str
    probabilities: Says
    threshold: float


def _beyond(reserves: Reserves, rows: pd.DataFrame) -> Floats:
    base, share = (rows["number_gpus"].gt(1).map({s: r[i] for s, r in reserves.items()}) for i in (0, 1))
    return (rows["usable_gib"] - rows["peak_gib"] - base - share * rows["activations_gib"]).to_numpy(float)


def constant(reserves: Reserves) -> Says:
    """A step at a reserve. So that it has a log loss, it is as wide as the rows to learn from find likely."""

    def probabilities(known: pd.DataFrame, unseen: pd.DataFrame) -> Floats:
        widths = np.geomspace(0.05, 5, 20)[:, None]
        beyond = _beyond(reserves, known) / widths
        likelihood = -np.logaddexp(0, np.where(known[LABEL] == 1, -beyond, beyond)).sum(1)
        weights = np.exp(likelihood - likelihood.max())
        steps = 1 / (1 + np.exp(-np.clip(_beyond(reserves, unseen) / widths, -500, 500)))
        return weights @ steps / weights.sum()

    return probabilities


def learnt_constant(known: pd.DataFrame, unseen: pd.DataFrame) -> Floats:
    """The same shares, and a reserve half way between the failed and the finished run that bound it."""
    reserves = {}
    for several, (_, share) in READ_OFF.items():
        of = known[(known["number_gpus"] > 1) == several]
        spare = _beyond({several: (0.0, share)}, of)
        failed, finished = spare[of[LABEL] == 0], spare[of[LABEL] == 1]
        reserves[several] = (float((failed.max(initial=0) + finished[finished > 0].min()) / 2), share)
    return constant(reserves)(known, unseen)


def curve(known: pd.DataFrame, unseen: pd.DataFrame) -> Floats:
    """What virtual rows are labelled by, without a predictor."""
    learnt = learn(known)
    return learnt.probabilities(learnt.spare_gib(unseen))


def _predictor(table: pd.DataFrame, monotone: Mapping[str, int], asked: pd.DataFrame) -> Floats:
    with tempfile.TemporaryDirectory() as scratch:
        predictors.fit(table, Path(scratch) / "predictor", monotone)
        tabular = predictors.load_tabular(Path(scratch) / "predictor", "held out")
        return tabular.predict_proba(asked[[*monotone]], as_pandas=False, as_multiclass=False)


def as_trained(known: pd.DataFrame, unseen: pd.DataFrame) -> Floats:
    """The predictor as a version has it."""
    table = training_rows(np.random.default_rng(0), rows=known)
    return _predictor(table, MONOTONE, learn(known).features(unseen))


def more_features(virtual: int, weight: int) -> Says:
    """A predictor that is told more of a job; every real row counts ``weight`` times."""
    monotone = {**MONOTONE, "activation_share": -1, "number_gpus": 0, "mixture_of_experts": -1}

    def probabilities(known: pd.DataFrame, unseen: pd.DataFrame) -> Floats:
        learnt, generator = learn(known), np.random.default_rng(0)

        def features(rows: pd.DataFrame) -> pd.DataFrame:
            share = (rows["activations_gib"] / rows["usable_gib"]).to_numpy()
            told = {name: rows[name].to_numpy() for name in ("number_gpus", "mixture_of_experts")}
            return learnt.features(rows).assign(activation_share=share, **told)

        drawn = virtual_rows(learnt, generator, virtual)
        several = 2 ** generator.integers(1, 5, virtual)
        drawn = drawn.assign(
            activation_share=generator.uniform(0, 1, virtual),
            number_gpus=np.where(drawn["sharded"] == 1, several, 1),
            mixture_of_experts=generator.integers(0, 2, virtual),
        )
        real = features(known).assign(**{LABEL: known[LABEL].to_numpy()})
        return _predictor(pd.concat([drawn, *[real] * weight], ignore_index=True), monotone, features(unseen))

    return probabilities


AS_TRAINED = Way("predictor: spare memory, sharded", as_trained, THRESHOLD)
WAYS = (
    Way("constant of 1.1.0: 1.5 GiB; 3.1 GiB", constant(VERSION_1_1_0), 0.5),
    Way("constant: 3.0 GiB; 3.1 GiB + 0.22 of activations (read off all runs)", constant(READ_OFF), 0.5),
    Way("constant: half way, shares 0 and 0.22", learnt_constant, 0.5),
    Way("logistic curve", curve, THRESHOLD),
    AS_TRAINED,
    Way("predictor: five features, real rows once", more_features(VIRTUAL_ROWS, 1), THRESHOLD),
    Way("predictor: five features, real rows 20 times", more_features(VIRTUAL_ROWS, 20), THRESHOLD),
    Way("predictor: five features, real rows alone", more_features(0, 1), THRESHOLD),
)


def held_out(way: Way, split: str, rows: pd.DataFrame) -> Floats:
    """The probability that a way gives each row, learning only from rows of other tables or models; shape (rows,)."""
    said = np.empty(len(rows))
    for name in rows[split].unique():
        unseen = (rows[split] == name).to_numpy()
        said[unseen] = way.probabilities(rows[~unseen], rows[unseen])
    return said


def side_by_side(ways: tuple[Way, ...] = WAYS) -> list[dict[str, Any]]:
    """A row for each way and each way of holding out: log loss, wrong decisions, GPUs beyond need."""
    rows = read_rows()
    learnt = learn(rows)
    near = np.abs(learnt.spare_gib(rows) - learnt.reserve_gib(THRESHOLD)) <= _NEAR_GIB
    found = []
    for split, way in itertools.product(_SPLITS, ways):
        probability = held_out(way, split, rows)
        loss = log_loss(rows[LABEL].to_numpy(), probability)
        said = probability >= way.threshold
        true = rows[LABEL].to_numpy() == 1
        found.append(
            {
                "held out by": split,
                "way": way.name,
                f"log loss, {len(rows)} runs": round(float(loss.mean()), 4),
                f"log loss, the {near.sum()} near the reserve": round(float(loss[near].mean()), 3),
                "failed, said to fit": int((said & ~true).sum()),
                "finished, said not to": int((~said & true).sum()),
                **beyond_need(rows, said),
            }
        )
    return found


def log_loss(fits: Floats, probability: Floats) -> Floats:
    """Of each run, in nats; a probability counts as at least one in 10,000.

    >>> log_loss(np.array([1, 0]), np.array([0.5, 0.0])).round(4).tolist()
    [0.6931, 0.0001]
    """
    sure = np.clip(probability, 1e-4, 1 - 1e-4)
    return -np.where(fits == 1, np.log(sure), np.log(1 - sure))


def beyond_need(rows: pd.DataFrame, said: Booleans) -> dict[str, int]:
    """GPUs asked for beyond need, over jobs that ran on several numbers of GPUs and finished on one of them.

    A job needs the smallest number on which it finished, and is asked the smallest on which it is said to fit, of those on
    which it ran; it is refused if that is none.
    """
    asked = rows.assign(said=said, tokens=rows["tokens_per_gpu"] * rows["number_gpus"])
    extra = short = refused = 0
    for _, job in asked.groupby(_JOB):
        finished, fitting = job.loc[job[LABEL] == 1, "number_gpus"], job.loc[job["said"], "number_gpus"]
        if job["number_gpus"].nunique() == 1 or finished.empty:
            continue
        if fitting.empty:
            refused += 1
        else:
            extra += max(0, int(fitting.min() - finished.min()))
            short += int(fitting.min() < finished.min())
    return {"GPUs beyond need": extra, "jobs given too few": short, "jobs refused": refused}


def real_calibration(way: Way = AS_TRAINED) -> list[dict[str, Any]]:
    """Predicted probability beside the share of held-out runs that finished."""
    rows = read_rows()
    found = []
    for split in _SPLITS:
        probability = held_out(way, split, rows)
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
    main()
