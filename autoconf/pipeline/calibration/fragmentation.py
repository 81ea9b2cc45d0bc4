"""Learn the margin of a version from replays of random jobs and from real runs.

AutoGluon learns whether a job runs, from the memory that is free beside what the deciding moment holds, from the
activations, from the states (gradients and optimizer states) and from the kind of the job. More free memory never makes
a job less likely to run, and more activations or states never more likely, which the orderings of a version need. It
learns from replays, and as much from real runs near the edge.

One thing is learned from real runs alone: how much FSDP of 4-bit weights needs in addition, as a share of the
activations. There, runs failed that replays of other models explain badly (docs/how-it-works/calibration.md).

``python -m autoconf.pipeline.calibration.fragmentation`` prints how well that does.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import typer

from autoconf.memory.fragmentation import EXPANDABLE, OF_4_BIT, Fragmentation, OutsidePyTorch, Surface, kind_named
from autoconf.memory.reserve import Reserve
from autoconf.memory.units import Booleans, Floats
from autoconf.pipeline.calibration.real_rows import read_rows
from autoconf.pipeline.calibration.reserve import (
    OF_ACTIVATIONS,
    THRESHOLD,
    Grid,
    Learned,
    beyond_fragmentation,
    for_pytorch,
    free_gib,
    kinds,
    learn,
)
from autoconf.pipeline.replay.outside_pytorch import by_class
from autoconf.pipeline.report import markdown
from autoconf.predictor import autogluon as autogluon_adapter
from autoconf.predictor.autogluon import LABEL

JOBS = Path(__file__).with_name("replayed_jobs.parquet")
_PLAIN = ("none", "ddp", "fsdp1", "fsdp2", "fsdp1" + OF_4_BIT, "fsdp2" + OF_4_BIT)
KINDS = (*_PLAIN, *(name + EXPANDABLE for name in _PLAIN))  # as of memory.fragmentation.kind_of
FEATURES = {"headroom_gib": 1, "activations_gib": -1, "states_gib": -1, "kind": 0}
# The grid of the surfaces, finer where there are more jobs.
_ACTIVATIONS_GIB = (
    *np.arange(0, 4, 0.5).tolist(), *np.arange(4, 12, 1.0).tolist(), *np.arange(12, 40, 2.0).tolist(),
    *np.arange(40, 100, 5.0).tolist(), 100.0, 140.0, 180.0, 300.0,
)  # fmt: skip
_STATES_GIB = (
    0.0, 0.001, 0.003, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 7.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0,
    40.0, 45.0, 50.0, 60.0, 80.0, 100.0, 120.0, 150.0,
)  # fmt: skip
_MOST_FRAGMENTATION_GIB = 1000.0
_SHOWN_GIB = (0, 10, 20, 30, 40, 60, 80)
_LEARNED_UP_TO_GIB = 100.0  # there are few replays and no real run beyond; a surface goes on as a share
_ROUNDS, _MOST_GIB = 16, 120.0
_QUANTILES = tuple((np.arange(40) + 0.5) / 40)  # at which the base without activations is read
_PROBABILITIES = (0.5, THRESHOLD, 0.99, 0.999)  # at which margins are compared
_NEAR_GIB = 15.0  # real runs that are further from the edge say nothing about fragmentation


def read_jobs(path: Path = JOBS) -> pd.DataFrame:
    """Read the replayed jobs.

    Returns:
        ``model``, ``method``, ``sharding`` (``none`` on one GPU; and the allocator), settings of the stack, ``gpus``,
        ``tokens`` (of a micro-batch on each GPU), ``held_gib`` (at the deciding moment, by profiles),
        ``activations_gib`` (among them), ``states_gib`` (gradients and optimizer states of each GPU), ``headroom_gib``
        (the capacity less ``held_gib``), ``fits`` (whether the replay ran at that capacity, 0 or 1), and ``kind`` (as
        of ``memory.fragmentation.kind_of``).
    """
    jobs = pd.read_parquet(path)
    named = {}
    for sharding, method in set(zip(jobs["sharding"], jobs["method"], strict=True)):
        plain, expandable = sharding.removesuffix(EXPANDABLE), sharding.endswith(EXPANDABLE)
        named[sharding, method] = kind_named(plain, method, "expandable_segments" if expandable else "default")
    return jobs.assign(kind=[named[pair] for pair in zip(jobs["sharding"], jobs["method"], strict=True)])


class OfReplays:
    """Predictors of whether jobs run, one for each allocator.

    Args:
        jobs: replayed jobs as of ``read_jobs``.
        runs: real runs as of ``for_pytorch``, from which is learned as well.
    """

    def __init__(self, jobs: pd.DataFrame, runs: pd.DataFrame) -> None:
        self.kinds = sorted({*jobs["kind"]}, key=KINDS.index)
        expandable = _is_expandable(jobs)
        near = as_jobs(runs[free_gib(runs).abs() < _NEAR_GIB])
        repeated = [near] * ((~expandable).sum() // max(len(near), 1))  # together they count as much as all replays
        self._tabulars = {
            of: _fitted(jobs[expandable == of], *([] if of else repeated))
            for of in (False, True)
            if (expandable == of).any()
        }  # by whether segments are expandable

    def probabilities(self, jobs: pd.DataFrame) -> Floats:
        """The probability that each job runs, shape (jobs,)."""
        found, expandable = np.empty(len(jobs)), _is_expandable(jobs)
        for of, tabular in self._tabulars.items():
            some = expandable == of
            if some.any():
                asked = _features(jobs[some])
                found[some] = tabular.predict_proba(asked, as_pandas=False, as_multiclass=False)
        return found

    def surface(self, kind: str, probability: float) -> Surface:
        """The free memory with which jobs run with a probability in (0, 1), by activations and states."""
        activations = np.array(_ACTIVATIONS_GIB)
        learned = np.minimum(activations, _LEARNED_UP_TO_GIB)
        grid = pd.MultiIndex.from_product([_STATES_GIB, learned], names=["states_gib", "activations_gib"])
        found = self._least_headroom(grid.to_frame(index=False).assign(kind=kind), probability)
        found = found.reshape(len(_STATES_GIB), len(activations)) * np.maximum(activations / _LEARNED_UP_TO_GIB, 1)
        rising = np.maximum.accumulate(np.maximum.accumulate(found, axis=0), axis=1)
        return Surface(activations, np.array(_STATES_GIB), rising)

    def bases(self, kind: str) -> tuple[float, ...]:
        """Quantiles of what jobs need without activations and states, ascending, in GiB."""
        nothing = pd.DataFrame({"activations_gib": [0.0], "states_gib": [0.0], "kind": [kind]})
        return tuple(float(self._least_headroom(nothing, q)[0]) for q in _QUANTILES)

    def _least_headroom(self, asked: pd.DataFrame, probability: float) -> Floats:
        too_little, enough = np.zeros(len(asked)), np.full(len(asked), _MOST_GIB)
        for _ in range(_ROUNDS):
            middle = (too_little + enough) / 2
            runs = self.probabilities(asked.assign(headroom_gib=middle)) >= probability
            too_little, enough = np.where(runs, too_little, middle), np.where(runs, middle, enough)
        return enough


def as_jobs(runs: pd.DataFrame) -> pd.DataFrame:
    """Real runs, as of ``for_pytorch``, with the columns from which ``OfReplays`` learns."""
    columns = ["activations_gib", "states_gib", LABEL]
    return runs[columns].assign(headroom_gib=free_gib(runs), kind=kinds(runs))


def as_rows(gib: Floats) -> tuple[tuple[float, ...], ...]:
    """A table of GiB as ``Surface`` has it, rounded to hundredths."""
    return tuple(tuple(row) for row in gib.round(2).tolist())


def _is_expandable(jobs: pd.DataFrame) -> Booleans:
    return jobs["kind"].str.endswith(EXPANDABLE).to_numpy(bool)


def _fitted(*jobs: pd.DataFrame) -> Any:
    table = pd.concat([_features(some).assign(**{LABEL: some[LABEL].astype(int)}) for some in jobs], ignore_index=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "predictor"
        autogluon_adapter.fit(table, folder, FEATURES)
        return autogluon_adapter.load_tabular(folder, "of replays")


def _features(jobs: pd.DataFrame) -> pd.DataFrame:
    codes = {name: code for code, name in enumerate(KINDS)}
    numbers = [name for name in FEATURES if name != "kind"]
    return jobs[numbers].astype(float).assign(kind=jobs["kind"].map(codes))


class Margin(NamedTuple):
    """The margin of a version.

    Attributes:
        rows: real rows whose usable memory is what is left for PyTorch.
        learned: how likely a job fits by what is free beside it and its fragmentation.
        fragmentation: the margin beyond that without activations and states.
        reserve: the margin without them.
        outside: memory outside PyTorch.
    """

    rows: pd.DataFrame
    learned: Learned
    fragmentation: Fragmentation
    reserve: Reserve
    outside: OutsidePyTorch


def learned_margin(jobs: pd.DataFrame, real: pd.DataFrame) -> Margin:
    """Learn the margin of a version.

    Args:
        jobs: replayed jobs as of ``read_jobs``.
        real: real rows as of ``real_rows.read_rows``.
    """
    rows = for_pytorch(real, by_class())
    return margin_at(THRESHOLD, OfReplays(jobs, rows), rows)


def margin_at(probability: float, replays: OfReplays, rows: pd.DataFrame) -> Margin:
    """The margin with which jobs run with a probability.

    Args:
        probability: in (0, 1).
        replays: what was learned.
        rows: real rows as of ``for_pytorch``.
    """
    one_gpu, several_gpus = (replays.surface(kind, probability).gib[0, 0] for kind in ("none", "fsdp1"))
    learned = beyond_fragmentation(one_gpu, max(one_gpu, several_gpus), probability)
    margin = learned.reserve(probability, at=(0.0, _MOST_FRAGMENTATION_GIB))  # by fragmentation, GiB for GiB
    of_4_bit = _of_4_bit_runs(replays, rows).reserve(probability, at=_ACTIVATIONS_GIB).several_gpus_gib
    surfaces: dict[str, Floats] = {}
    for kind in replays.kinds:
        base = (margin.one_gpu_gib if kind.startswith("none") else margin.several_gpus_gib)[0]
        needed = replays.surface(kind, probability).gib
        plain = kind.removesuffix(EXPANDABLE)
        if kind.endswith(OF_4_BIT):
            needed = np.maximum(needed, of_4_bit)
        found = np.maximum(needed - base, 0)
        # No real run is known to have expandable segments.
        surfaces[kind] = found if plain == kind else np.minimum(found, surfaces[plain])
    rounded = {kind: as_rows(gib) for kind, gib in surfaces.items()}
    return Margin(rows, learned, Fragmentation(_ACTIVATIONS_GIB, _STATES_GIB, rounded), margin, by_class())


def _of_4_bit_runs(replays: OfReplays, rows: pd.DataFrame) -> Learned:
    """What real runs with FSDP of 4-bit weights need, by activations; replays tell what is needed without them."""
    kind = "fsdp1" + OF_4_BIT
    grid = Grid(replays.bases(kind), OF_ACTIVATIONS.shares, OF_ACTIVATIONS.widths)  # each base is as likely
    return learn(rows[np.array(kinds(rows)) == kind], grid)


def needed_gib(margin: Margin, jobs: pd.DataFrame) -> Floats:
    """GiB that each job of ``read_jobs`` or ``as_jobs`` must have free, shape (jobs,)."""
    several = ~jobs["kind"].str.startswith("none").to_numpy(bool)
    needed = margin.reserve.gib(np.zeros(len(jobs)), np.where(several, 2, 1))
    for kind in jobs["kind"].unique():
        some = (jobs["kind"] == kind).to_numpy()
        activations, states = (jobs.loc[some, name].to_numpy(float) for name in ("activations_gib", "states_gib"))
        needed[some] += margin.fragmentation.surface(kind).at(activations[None], states)[0]
    return needed


def by_fragmentation(margin: Margin) -> pd.DataFrame:
    """The real rows of a margin, whose fragmentation is in place of their activations."""
    gpus = margin.rows["number_gpus"].to_numpy()
    found = needed_gib(margin, as_jobs(margin.rows)) - margin.reserve.gib(np.zeros(len(gpus)), gpus)
    return margin.rows.assign(activations_gib=found)


def said_to_fit(margin: Margin, jobs: pd.DataFrame) -> Booleans:
    """Whether each replayed job has its fragmentation and the reserve free, shape (jobs,)."""
    return np.asarray(jobs["headroom_gib"].to_numpy() >= needed_gib(margin, jobs))


def held_out(jobs: pd.DataFrame, real: pd.DataFrame, folds: int = 5) -> pd.DataFrame:
    """Compare the margin with replays of models that it has not seen.

    Returns:
        For each kind and for all: replays that failed, those of them said to fit, and likewise those that ran and were
        refused.
    """
    (fits,) = _held_out_fits(jobs, real, (THRESHOLD,), folds)
    return pd.DataFrame([{"kind": kind} | _counts(jobs, fits, kind) for kind in (*KINDS, "all")])


def by_probability(jobs: pd.DataFrame, real: pd.DataFrame, folds: int = 5) -> pd.DataFrame:
    """What a margin at other probabilities says of replays of unseen models, and of the real runs it learned from."""
    rows = for_pytorch(real, by_class())
    replays = OfReplays(jobs, rows)
    found = []
    for probability, fits in zip(_PROBABILITIES, _held_out_fits(jobs, real, _PROBABILITIES, folds), strict=True):
        (runs,) = of_real_runs(margin_at(probability, replays, rows))
        of_runs = {f"real runs: {name}": runs[name] for name in ("failed, said to fit", "finished, refused")}
        found.append({"probability": probability} | _counts(jobs, fits, "all") | of_runs)
    return pd.DataFrame(found)


def _held_out_fits(
    jobs: pd.DataFrame, real: pd.DataFrame, probabilities: tuple[float, ...], folds: int
) -> list[Booleans]:
    """Whether each replay is said to fit at each probability, by what was learned from other models."""
    numbers = {model: index % folds for index, model in enumerate(sorted(jobs["model"].unique()))}
    fold, rows = jobs["model"].map(numbers).to_numpy(), for_pytorch(real, by_class())
    fits = [np.zeros(len(jobs), bool) for _ in probabilities]
    for index in range(folds):
        unseen = fold == index
        replays = OfReplays(jobs[~unseen], rows)
        for probability, of in zip(probabilities, fits, strict=True):
            of[unseen] = said_to_fit(margin_at(probability, replays, rows), jobs[unseen])
    return fits


def _counts(jobs: pd.DataFrame, fits: Booleans, kind: str) -> dict[str, int]:
    ran = jobs[LABEL].to_numpy() == 1
    some = (jobs["kind"] == kind).to_numpy() | (kind == "all")
    counts = {"failed": ~ran, "said to fit": ~ran & fits, "ran": ran, "refused": ran & ~fits}
    return {name: int((some & which).sum()) for name, which in counts.items()}


def real_probabilities(jobs: pd.DataFrame, real: pd.DataFrame, split: str) -> Floats:
    """The probability that each real run fits, learned from replays and from the other tables or models of runs.

    Args:
        jobs: replayed jobs as of ``read_jobs``.
        real: real rows as of ``real_rows.read_rows``.
        split: ``table`` or ``model``.
    """
    rows, found = for_pytorch(real, by_class()), np.empty(len(real))
    jobs = jobs[~_is_expandable(jobs)]  # no real run is known to have expandable segments
    for name in rows[split].unique():
        unseen = (rows[split] == name).to_numpy()
        replays, asked = OfReplays(jobs, rows[~unseen]), as_jobs(rows[unseen])
        free, activations = (asked[column].to_numpy() for column in ("headroom_gib", "activations_gib"))
        by_runs = _of_4_bit_runs(replays, rows[~unseen]).probabilities(free, activations, np.full(len(asked), 2))
        of_4_bit = asked["kind"].str.endswith(OF_4_BIT).to_numpy(bool)
        found[unseen] = np.minimum(replays.probabilities(asked), np.where(of_4_bit, by_runs, 1.0))
    return found


def by_activations(margin: Margin) -> list[dict[str, Any]]:
    """GiB that must be left for PyTorch beyond allocated memory, by kind, states and GiB of activations."""
    rows = []
    for name, kind, states in (
        ("one GPU, LoRA", "none", 0.0),
        ("one GPU, 20 GiB of states", "none", 20.0),
        ("DDP, 20 GiB", "ddp", 20.0),
        ("FSDP1 or ZeRO, LoRA", "fsdp1", 0.0),
        ("FSDP1 or ZeRO, 20 GiB", "fsdp1", 20.0),
        ("FSDP1 or ZeRO, QLoRA", "fsdp1" + OF_4_BIT, 0.0),
        ("FSDP2, LoRA", "fsdp2", 0.0),
        ("FSDP2, 20 GiB", "fsdp2", 20.0),
        ("FSDP2, QLoRA", "fsdp2" + OF_4_BIT, 0.0),
        ("one GPU, 20 GiB, expandable segments", "none" + EXPANDABLE, 20.0),
        ("FSDP2, 20 GiB, expandable segments", "fsdp2" + EXPANDABLE, 20.0),
    ):
        jobs = pd.DataFrame({"activations_gib": np.array(_SHOWN_GIB, float), "states_gib": states, "kind": kind})
        figures = zip(map(str, _SHOWN_GIB), needed_gib(margin, jobs).tolist(), strict=True)
        rows.append({"GiB of activations": name} | {column: f"{value:.2f}" for column, value in figures})
    return rows


def of_real_runs(margin: Margin) -> list[dict[str, Any]]:
    """What the margin says of the real runs that it was learned from."""
    left = free_gib(margin.rows).to_numpy() - needed_gib(margin, as_jobs(margin.rows))
    finished = (margin.rows[LABEL] == 1).to_numpy()
    refused = finished & (left < 0)
    most = f"{-left[refused].min():.2f}" if refused.any() else "0"
    line = {"runs": len(left), "failed, said to fit": int((~finished & (left >= 0)).sum())}
    return [{**line, "finished, refused": int(refused.sum()), "by at most, GiB": most}]


def main() -> None:
    """Print the learned margin, and how replays of unseen models agree with it."""
    jobs, real = read_jobs(), read_rows()
    typer.echo(f"{len(jobs):,} replayed jobs of {jobs['model'].nunique()} models\n")
    margin = learned_margin(jobs, real)
    typer.echo(markdown(by_activations(margin)) + "\n")
    typer.echo(markdown(of_real_runs(margin)) + "\n")
    typer.echo(markdown(by_probability(jobs, real).to_dict("records")))


if __name__ == "__main__":
    typer.run(main)
