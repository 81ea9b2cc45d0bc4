"""Learn the margin of a version from replays of random jobs and from real runs.

AutoGluon learns whether a replay runs, from the memory that is free beside what the deciding moment holds, from the
activations and from the sharding. More free memory never makes a job less likely to run, and more activations never
more likely, which the orderings of a version need. It tells how much is needed without activations, which real runs do
not, and how much with them under FSDP2, of which no real run near the edge is known. How much is needed with
activations on one GPU and under FSDP1 is learned from real runs: there the curves of the replays, which hold for all
jobs of a kind, explain the runs worse than a share of the activations (docs/how-it-works/calibration.md).

``python -m autoconf.pipeline.calibration.fragmentation`` prints how well both do.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import typer

from autoconf.memory.fragmentation import EXPANDABLE, Curve, Fragmentation, OutsidePyTorch
from autoconf.memory.reserve import Reserve
from autoconf.memory.units import Booleans, Floats
from autoconf.pipeline.calibration.real_rows import read_rows
from autoconf.pipeline.calibration.reserve import (
    OF_ACTIVATIONS,
    THRESHOLD,
    Grid,
    Learned,
    for_pytorch,
    free_gib,
    learn,
)
from autoconf.pipeline.replay.outside_pytorch import by_class
from autoconf.pipeline.report import markdown
from autoconf.predictor import autogluon as autogluon_adapter
from autoconf.predictor.autogluon import LABEL

JOBS = Path(__file__).with_name("replayed_jobs.parquet")
_PLAIN = ("none", "ddp", "fsdp1", "fsdp2")
SHARDING = (*_PLAIN, *(name + EXPANDABLE for name in _PLAIN))  # as of memory.fragmentation.sharding_of
FEATURES = {"headroom_gib": 1, "activations_gib": -1, "sharding": 0}
_ACTIVATIONS_GIB = (0.0, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 80.0, 100.0, 140.0, 180.0, 300.0)
_MOST_FRAGMENTATION_GIB = 1000.0
_SHOWN_GIB = (0, 10, 20, 30, 40, 60, 80)
_LEARNED_UP_TO_GIB = 100.0  # there are few replays and no real run beyond; the curve goes on as a share
_ROUNDS, _MOST_GIB = 16, 120.0
_QUANTILES = tuple((np.arange(40) + 0.5) / 40)  # at which the base without activations is read


def read_jobs(path: Path = JOBS) -> pd.DataFrame:
    """Read the replayed jobs.

    Returns:
        ``model``, ``method``, ``sharding`` (as of ``memory.fragmentation.sharding_of``), settings of the stack,
        ``gpus``, ``tokens`` (of a micro-batch on each GPU), ``held_gib`` (at the deciding moment, by profiles),
        ``activations_gib`` (among them), ``headroom_gib`` (the capacity less ``held_gib``) and ``fits`` (whether the
        replay ran at that capacity, 0 or 1).
    """
    return pd.read_parquet(path)


class OfReplays:
    """Predictors of whether replays run, one for each allocator.

    Args:
        jobs: replayed jobs as of ``read_jobs``.
    """

    def __init__(self, jobs: pd.DataFrame) -> None:
        expandable = _is_expandable(jobs)
        self._tabulars = {
            of: _fitted(jobs[expandable == of]) for of in (False, True) if (expandable == of).any()
        }  # by whether segments are expandable

    def probabilities(self, jobs: pd.DataFrame) -> Floats:
        """The probability that each job's replay runs, shape (jobs,)."""
        found, expandable = np.empty(len(jobs)), _is_expandable(jobs)
        for of, tabular in self._tabulars.items():
            some = expandable == of
            if some.any():
                asked = _features(jobs[some])
                found[some] = tabular.predict_proba(asked, as_pandas=False, as_multiclass=False)
        return found

    def curve(self, sharding: str, probability: float) -> Curve:
        """The free memory with which replays run with a probability in (0, 1), by activations."""
        activations = np.array(_ACTIVATIONS_GIB)
        found = self._least_headroom(np.minimum(activations, _LEARNED_UP_TO_GIB), sharding, probability)
        curve = np.maximum.accumulate(found * np.maximum(activations / _LEARNED_UP_TO_GIB, 1))
        return Curve(_ACTIVATIONS_GIB, tuple((np.ceil(100 * curve) / 100).tolist()))

    def bases(self, sharding: str) -> tuple[float, ...]:
        """Quantiles of what replays need without activations, ascending, in GiB."""
        return tuple(float(self._least_headroom(np.zeros(1), sharding, q)[0]) for q in _QUANTILES)

    def _least_headroom(self, activations_gib: Floats, sharding: str, probability: float) -> Floats:
        asked = pd.DataFrame({"activations_gib": activations_gib, "sharding": sharding})
        too_little, enough = np.zeros(len(asked)), np.full(len(asked), _MOST_GIB)
        for _ in range(_ROUNDS):
            middle = (too_little + enough) / 2
            runs = self.probabilities(asked.assign(headroom_gib=middle)) >= probability
            too_little, enough = np.where(runs, too_little, middle), np.where(runs, middle, enough)
        return enough


def _is_expandable(jobs: pd.DataFrame) -> Booleans:
    return jobs["sharding"].str.endswith(EXPANDABLE).to_numpy(bool)


def _fitted(jobs: pd.DataFrame) -> Any:
    table = _features(jobs).assign(**{LABEL: jobs[LABEL].astype(int)})
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "predictor"
        autogluon_adapter.fit(table, folder, FEATURES)
        return autogluon_adapter.load_tabular(folder, "of replays")


def _features(jobs: pd.DataFrame) -> pd.DataFrame:
    codes = {name: code for code, name in enumerate(SHARDING)}
    return jobs[["headroom_gib", "activations_gib"]].astype(float).assign(sharding=jobs["sharding"].map(codes))


class Margin(NamedTuple):
    """The margin of a version.

    Attributes:
        rows: real rows whose usable memory is what is left for PyTorch.
        learned: what was learned from them, by activations.
        fragmentation: the margin beyond that without activations.
        reserve: the margin without activations.
        outside: memory outside PyTorch.
    """

    rows: pd.DataFrame
    learned: Learned
    fragmentation: Fragmentation
    reserve: Reserve
    outside: OutsidePyTorch


def _learned(replays: OfReplays, rows: pd.DataFrame) -> Learned:
    """What real runs say; replays tell what is needed without activations, on one GPU and under FSDP1."""
    explanations = {}
    for several, sharding in ((False, "none"), (True, "fsdp1")):
        grid = Grid(replays.bases(sharding), OF_ACTIVATIONS.shares, OF_ACTIVATIONS.widths)  # each base is as likely
        explanations[several] = learn(rows, grid).explanations[several]
    return Learned(explanations)


def learned_margin(jobs: pd.DataFrame, real: pd.DataFrame) -> Margin:
    """Learn the margin of a version.

    Args:
        jobs: replayed jobs as of ``read_jobs``.
        real: real rows as of ``real_rows.read_rows``.
    """
    replays, outside = OfReplays(jobs), by_class()
    rows = for_pytorch(real, outside)
    learned = _learned(replays, rows)
    margin = learned.reserve(at=_ACTIVATIONS_GIB)
    one, several = (np.array(of) - of[0] for of in (margin.one_gpu_gib, margin.several_gpus_gib))
    fsdp2 = np.array(replays.curve("fsdp2", THRESHOLD).gib)
    curves = {"none": one, "ddp": several, "fsdp1": several, "fsdp2": np.maximum(several, fsdp2 - fsdp2[0])}
    curves |= _of_expandable_segments(replays, jobs, curves)
    # By fragmentation, GiB for GiB.
    bases = margin.one_gpu_gib[0], margin.several_gpus_gib[0]
    one_gpu, several_gpus = ((base, base + _MOST_FRAGMENTATION_GIB) for base in bases)
    reserve = Reserve((0.0, _MOST_FRAGMENTATION_GIB), one_gpu, several_gpus)
    rounded = {name: tuple(curve.round(2).tolist()) for name, curve in curves.items()}
    return Margin(rows, learned, Fragmentation(_ACTIVATIONS_GIB, rounded), reserve, outside)


def _of_expandable_segments(replays: OfReplays, jobs: pd.DataFrame, curves: dict[str, Floats]) -> dict[str, Floats]:
    """What replays with expandable segments need, and never more than without; no real run is known to have them."""
    found = {}
    for name in {*jobs["sharding"]} - {*curves}:
        needed = np.array(replays.curve(name, THRESHOLD).gib)
        found[name] = np.minimum(needed - needed[0], curves[name.removesuffix(EXPANDABLE)])
    return found


def said_to_fit(margin: Margin, jobs: pd.DataFrame) -> Booleans:
    """Whether each replayed job has its fragmentation and the reserve free, shape (jobs,)."""
    activations, gpus = jobs["activations_gib"].to_numpy(float), jobs["gpus"].to_numpy()
    needed = margin.reserve.gib(np.zeros(len(jobs)), gpus)
    for sharding in SHARDING:
        some = (jobs["sharding"] == sharding).to_numpy()
        needed[some] += margin.fragmentation.curve(sharding).at(activations[some])
    return np.asarray(jobs["headroom_gib"].to_numpy() >= needed)


def held_out(jobs: pd.DataFrame, real: pd.DataFrame, folds: int = 8) -> pd.DataFrame:
    """Compare the margin, and the curves of replays alone, with replays of models that they have not seen.

    Returns:
        For each sharding and for all: replays that failed, those of them said to fit by the margin and by the curve of
        replays at the required probability, and likewise those that ran and were refused.
    """
    numbers = {model: index % folds for index, model in enumerate(sorted(jobs["model"].unique()))}
    fold = jobs["model"].map(numbers).to_numpy()
    by_margin, by_replays = np.zeros(len(jobs), bool), np.zeros(len(jobs), bool)
    for index in range(folds):
        unseen, known = fold == index, jobs[fold != index]
        by_margin[unseen] = said_to_fit(learned_margin(known, real), jobs[unseen])
        by_replays[unseen] = OfReplays(known).probabilities(jobs[unseen]) >= THRESHOLD
    ran = jobs[LABEL].to_numpy() == 1
    lines = []
    for sharding in (*SHARDING, "all"):
        some = (jobs["sharding"] == sharding).to_numpy() | (sharding == "all")
        line: dict[str, Any] = {"sharding": sharding, "failed": int((some & ~ran).sum())}
        for name, fits in {"margin": by_margin, "curve of replays": by_replays}.items():
            line[f"said to fit, {name}"] = int((some & ~ran & fits).sum())
        line["ran"] = int((some & ran).sum())
        for name, fits in {"margin": by_margin, "curve of replays": by_replays}.items():
            line[f"refused, {name}"] = int((some & ran & ~fits).sum())
        lines.append(line)
    return pd.DataFrame(lines)


def real_probabilities(jobs: pd.DataFrame, real: pd.DataFrame, split: str) -> Floats:
    """The probability that each real run fits, learned from replays and from the other tables or models of runs.

    Args:
        jobs: replayed jobs as of ``read_jobs``.
        real: real rows as of ``real_rows.read_rows``.
        split: ``table`` or ``model``.
    """
    replays, rows = OfReplays(jobs), for_pytorch(real, by_class())
    found = np.empty(len(rows))
    for name in rows[split].unique():
        unseen = (rows[split] == name).to_numpy()
        asked = rows[unseen]
        columns = free_gib(asked), asked["activations_gib"], asked["number_gpus"]
        found[unseen] = _learned(replays, rows[~unseen]).probabilities(*(column.to_numpy() for column in columns))
    return found


def by_activations(margin: Margin) -> list[dict[str, Any]]:
    """GiB that must be left for PyTorch beyond allocated memory, by sharding and GiB of activations."""
    rows = []
    for name, sharding, reserve in (
        ("one GPU", "none", margin.reserve.one_gpu_gib[0]),
        ("several, DDP, FSDP1 or ZeRO", "fsdp1", margin.reserve.several_gpus_gib[0]),
        ("several, FSDP2", "fsdp2", margin.reserve.several_gpus_gib[0]),
        ("one GPU, expandable segments", "none" + EXPANDABLE, margin.reserve.one_gpu_gib[0]),
        ("FSDP2, expandable segments", "fsdp2" + EXPANDABLE, margin.reserve.several_gpus_gib[0]),
    ):
        gib = reserve + margin.fragmentation.curve(sharding).at(np.array(_SHOWN_GIB, float))
        figures = zip(map(str, _SHOWN_GIB), gib.tolist(), strict=True)
        rows.append({"GiB of activations": name} | {column: f"{value:.2f}" for column, value in figures})
    return rows


def of_real_runs(margin: Margin, jobs: pd.DataFrame) -> list[dict[str, Any]]:
    """What the margin, and the curves of replays in its place, say of the real runs that they were learned from."""
    rows, replays = margin.rows, OfReplays(jobs)
    several = (rows["number_gpus"] > 1).to_numpy()
    activations, finished = rows["activations_gib"].to_numpy(float), (rows[LABEL] == 1).to_numpy()
    reserve = margin.reserve.gib(np.zeros(len(rows)), rows["number_gpus"].to_numpy())
    found = []
    for name, curve, base in (
        ("margin", margin.fragmentation.curve, reserve),
        ("curve of replays", lambda sharding: replays.curve(sharding, THRESHOLD), 0.0),
    ):
        one, fsdp1 = (curve(sharding).at(activations) for sharding in ("none", "fsdp1"))
        left = free_gib(rows).to_numpy() - np.where(several, fsdp1, one) - base
        refused = finished & (left < 0)
        most = f"{-left[refused].min():.2f}" if refused.any() else "0"
        line = {"rule": name, "failed, said to fit": int((~finished & (left >= 0)).sum())}
        found.append({**line, "finished, refused": int(refused.sum()), "by at most, GiB": most})
    return found


def main() -> None:
    """Print the learned margin, and how replays of unseen models agree with it."""
    jobs, real = read_jobs(), read_rows()
    typer.echo(f"{len(jobs):,} replayed jobs of {jobs['model'].nunique()} models\n")
    margin = learned_margin(jobs, real)
    typer.echo(markdown(by_activations(margin)) + "\n")
    typer.echo(markdown(of_real_runs(margin, jobs)) + "\n")
    typer.echo(markdown(held_out(jobs, real).to_dict("records")))


if __name__ == "__main__":
    typer.run(main)
