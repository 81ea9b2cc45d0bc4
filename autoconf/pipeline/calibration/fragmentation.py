"""Learn fragmentation from replays of random jobs.

AutoGluon learns whether a replay runs from the memory that is free beside what the deciding moment holds, from the
activations and from the kind of the job (``JobKind``). More free memory never makes a job less likely to run, more
activations never more likely, and full fine-tuning never needs less than LoRA, which the orderings of a version need.
Fragmentation is the free memory from which on the replay runs with a probability.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from autoconf.memory.fragmentation import Fragmentation, JobKind
from autoconf.memory.units import Booleans, Floats
from autoconf.predictor import autogluon as autogluon_adapter
from autoconf.predictor.autogluon import LABEL

JOBS = Path(__file__).with_name("replayed_jobs.parquet")
METHODS, SHARDING = ("qlora", "lora", "full"), ("none", "ddp", "fsdp1", "fsdp2")
FEATURES = {"headroom_gib": 1, "activations_gib": -1, "method": -1, "sharding": 0}
PROBABILITY = 0.95
_ACTIVATIONS_GIB = (0.0, 0.5, 1.0, 2.0, 4.0, 7.0, 11.0, 16.0, 22.0, 30.0, 40.0, 55.0, 75.0, 100.0, 140.0, 180.0, 300.0)
_LEARNED_UP_TO_GIB = 140.0  # there are few replays beyond; the curve goes on as a share
_ROUNDS, _MOST_GIB = 16, 120.0


def read_jobs(path: Path = JOBS) -> pd.DataFrame:
    """Read the replayed jobs.

    Returns:
        ``model``, the fields of ``JobKind``, ``gpus``, ``tokens`` (of a micro-batch on each GPU), ``held_gib`` (at the
        deciding moment, by profiles), ``activations_gib`` (among them), ``headroom_gib`` (the capacity less
        ``held_gib``) and ``fits`` (whether the replay ran at that capacity, 0 or 1).
    """
    return pd.read_parquet(path)


def features(jobs: pd.DataFrame) -> pd.DataFrame:
    """The columns of ``FEATURES`` of replayed jobs."""
    codes = {"method": METHODS, "sharding": SHARDING}
    numbers = {name: jobs[name].map({value: code for code, value in enumerate(of)}) for name, of in codes.items()}
    return jobs[["headroom_gib", "activations_gib"]].astype(float).assign(**numbers)


class Learned:
    """A predictor of whether replays run, trained on replayed jobs."""

    def __init__(self, jobs: pd.DataFrame) -> None:
        table = features(jobs).assign(**{LABEL: jobs[LABEL].astype(int)})
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "predictor"
            autogluon_adapter.fit(table, folder, FEATURES)
            self._tabular = autogluon_adapter.load_tabular(folder, "of replays")

    def probabilities(self, jobs: pd.DataFrame) -> Floats:
        """The probability that each job's replay runs, shape (jobs,)."""
        found = self._tabular.predict_proba(features(jobs), as_pandas=False, as_multiclass=False)
        return np.asarray(found, np.float64)

    def fragmentation(self, probability: float = PROBABILITY) -> Fragmentation:
        """The free memory with which replays run with a probability in (0, 1)."""
        kinds = [JobKind(method, sharding) for method, sharding in itertools.product(METHODS, SHARDING)]
        asked = pd.DataFrame(
            [
                {**kind._asdict(), "activations_gib": min(activations, _LEARNED_UP_TO_GIB)}
                for kind, activations in itertools.product(kinds, _ACTIVATIONS_GIB)
            ]
        )
        found = self._least_headroom(asked, probability).reshape(len(kinds), -1)
        beyond = np.maximum(np.array(_ACTIVATIONS_GIB) / _LEARNED_UP_TO_GIB, 1.0)
        curves = np.maximum.accumulate(found * beyond, axis=1)
        curves = np.ceil(100 * curves) / 100
        return Fragmentation(
            _ACTIVATIONS_GIB, {str(kind): tuple(curve) for kind, curve in zip(kinds, curves.tolist(), strict=True)}
        )

    def _least_headroom(self, asked: pd.DataFrame, probability: float) -> Floats:
        too_little, enough = np.zeros(len(asked)), np.full(len(asked), _MOST_GIB)
        for _ in range(_ROUNDS):
            middle = (too_little + enough) / 2
            runs = self.probabilities(asked.assign(headroom_gib=middle)) >= probability
            too_little, enough = np.where(runs, too_little, middle), np.where(runs, middle, enough)
        return enough


def learned_fragmentation() -> Fragmentation:
    """What the replayed jobs of this folder say."""
    return Learned(read_jobs()).fragmentation()


def said_to_fit(fragmentation: Fragmentation, jobs: pd.DataFrame) -> Booleans:
    """Whether each replayed job has the fragmentation of its kind free, shape (jobs,)."""
    fits = np.zeros(len(jobs), bool)
    for (method, sharding), some in jobs.reset_index(drop=True).groupby(["method", "sharding"]):
        curve = fragmentation.curve(JobKind(method, sharding))
        fits[some.index] = some["headroom_gib"].to_numpy() >= curve.at(some["activations_gib"].to_numpy(float))
    return fits


def held_out(jobs: pd.DataFrame, probabilities: Iterable[float], folds: int = 8) -> list[dict[str, Any]]:
    """Compare curves with replays of models that they have not seen.

    Returns:
        A row for each probability: the replays that failed and were said to fit, and those that ran and were refused.
    """
    fold = jobs["model"].map({model: index % folds for index, model in enumerate(sorted(jobs["model"].unique()))})
    learned = [(fold == index, Learned(jobs[fold != index])) for index in range(folds)]
    found = []
    for probability in probabilities:
        fits = np.zeros(len(jobs), bool)
        for unseen, from_others in learned:
            fits[unseen.to_numpy()] = said_to_fit(from_others.fragmentation(probability), jobs[unseen])
        ran = jobs[LABEL].to_numpy() == 1
        found.append(
            {
                "probability": probability,
                "replays": len(jobs),
                "failed, said to fit": int((fits & ~ran).sum()),
                "ran, refused": int((~fits & ran).sum()),
            }
        )
    return found
