"""Real runs near the edge of their GPU's memory, replayed with their own stack and libraries.

``python -m autoconf.pipeline.calibration.replayed_rows RUNS.csv ...`` replays the rows of ``real_rows.csv`` whose
outcome their peak does not decide, and writes the least capacity of each into ``replayed_rows.csv`` in this folder. It
takes about ten minutes. Without arguments it prints how well replays and constants explain runs that they have not
seen.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from autoconf.errors import AutoConfError, BadInput
from autoconf.memory.units import GIB, Booleans, Floats
from autoconf.pipeline.calibration.fragmentation import read_jobs, real_probabilities
from autoconf.pipeline.calibration.held_out import log_loss
from autoconf.pipeline.calibration.real_rows import read_rows
from autoconf.pipeline.calibration.reserve import THRESHOLD, free_gib, learn
from autoconf.pipeline.replay.event_arrays import EventArrays
from autoconf.pipeline.report import markdown
from autoconf.pipeline.validation import environments
from autoconf.pipeline.validation.benchmark_runs import Run, read_runs
from autoconf.predictor.autogluon import LABEL

ROWS = Path(__file__).with_name("replayed_rows.csv")
# A run with less free memory than any context of CUDA fails. One whose GPU has this share of its peak, and 2 GiB, on
# top runs: no replay of a job needs as much.
_LEAST_FREE_GIB = 0.3
_MOST_SHARE, _MOST_GIB = 0.4, 2.0
_SPLITS = ("table", "model")
_THRESHOLDS = (0.5, THRESHOLD)


def undecided(rows: pd.DataFrame) -> Booleans:
    """Whether the peak of each real row leaves its outcome open, shape (rows,)."""
    free = free_gib(rows)
    return ((free > _LEAST_FREE_GIB) & (free < _MOST_SHARE * rows["peak_gib"] + _MOST_GIB)).to_numpy()


# --- replaying --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """Runs that differ in their sizes only."""

    libraries: environments.Libraries | None
    fields: dict[str, Any]
    runs: list[tuple[str, Run]]  # each with its table

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return sorted({_size(run) for _, run in self.runs})


def _size(run: Run) -> tuple[int, int]:
    return run.samples, run.tokens_per_gpu // run.samples


def replayed(tables: list[Path]) -> pd.DataFrame:
    """Replay the undecided rows of tables of runs.

    Returns:
        Columns ``table``, ``line``, ``how`` (it was recorded) and ``least_gib``.

    Raises:
        BadInput: a table is not a table of runs.
        AutoConfError: a job cannot be recorded.
    """
    rows = read_rows()
    open_lines = set(rows.loc[undecided(rows), ["table", "line"]].itertuples(index=False, name=None))
    jobs: dict[str, _Job] = {}
    for path in tables:
        for run in read_runs(path):
            if (path.stem, run.line) in open_lines:
                fields = {**run.job(), "gpus": run.gpus}
                key = json.dumps([run.libraries and run.libraries.name, fields])
                jobs.setdefault(key, _Job(run.libraries, fields, [])).runs.append((path.stem, run))
    found = []
    for number, job in enumerate(jobs.values(), 1):
        print(f"job {number} of {len(jobs)}: {job.runs[0][1].model}, {len(job.runs)} runs", file=sys.stderr)
        found += list(_replayed(job))
    return pd.DataFrame(found).sort_values(["table", "line"], ignore_index=True)


def _replayed(job: _Job) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        asked = {**job.fields, "sizes": job.sizes, "folder": folder}
        (answer,) = environments.run(job.libraries, "autoconf.pipeline.validation.record_jobs", [asked])
        if "problem" in answer:
            raise AutoConfError(f"{job.runs[0][1].model}: cannot be recorded: {answer['problem']}")
        least = {size: _least_gib(Path(folder) / f"{number}.npz") for number, size in enumerate(job.sizes)}
    for table, run in job.runs:
        yield {"table": table, "line": run.line, "how": answer["how"], "least_gib": round(least[_size(run)], 3)}


def _least_gib(path: Path) -> float:
    from autoconf.pipeline.replay import compiled  # which needs numba

    with np.load(path) as arrays:
        return compiled.least_capacity(EventArrays(**arrays)) / GIB


# --- comparing --------------------------------------------------------------------------------------------------------


def read() -> pd.DataFrame:
    """The real rows, with the GiB that are free beyond the least capacity of their replay (``spare``).

    Where the peak decides, ``spare`` is that side of the decision: the free memory, or what is free in the worst case.

    >>> read()["spare"].notna().all()
    np.True_
    """
    rows = read_rows().merge(pd.read_csv(ROWS), on=["table", "line"], how="left")
    free = free_gib(rows)
    decided = np.where(free <= _LEAST_FREE_GIB, free, free - _MOST_SHARE * rows["peak_gib"])
    replays = rows["usable_gib"] - rows["least_gib"]
    return rows.assign(spare=replays.where(undecided(rows), pd.Series(decided)))


# The rules: each names the memory of a run that counts as its peak, and whether a share of activations counts as well.
CONSTANT, REPLAY = "constant beside the peak", "constant beyond the replay's least capacity"
# As version 2.0.0, whose form was chosen with knowledge of these rows.
WITH_SHARE = "constant and a share of activations beside the peak *"
# As version 3.0.0: learned from replays of random jobs, from reports about memory outside PyTorch, and from real runs.
OF_3_0_0 = "as version 3.0.0: activations, states and kind, from random replays and real runs *"


def as_rule(rows: pd.DataFrame, rule: str) -> pd.DataFrame:
    """Rows as ``reserve.learn`` has to see them for a rule."""
    if rule == WITH_SHARE:
        return rows
    peak = rows["peak_gib"] if rule == CONSTANT else rows["usable_gib"] - rows["spare"]
    return rows.assign(peak_gib=peak, activations_gib=0.0)


def held_out(rows: pd.DataFrame, split: str) -> Floats:
    """The probability that each row finished, learned from other tables or other models, shape (rows,)."""
    found = np.empty(len(rows))
    for name in rows[split].unique():
        unseen = (rows[split] == name).to_numpy()
        columns = (free_gib(rows[unseen]), rows.loc[unseen, "activations_gib"], rows.loc[unseen, "number_gpus"])
        found[unseen] = learn(rows[~unseen]).probabilities(*(column.to_numpy() for column in columns))
    return found


def side_by_side(rows: pd.DataFrame, of_3_0_0: Mapping[str, Floats]) -> list[dict[str, Any]]:
    """A row for each rule and each split: log loss, and wrong decisions at two thresholds.

    Args:
        rows: rows of ``read``.
        of_3_0_0: ``fragmentation.real_probabilities`` of each split, which take minutes.
    """
    near, finished = undecided(rows), rows[LABEL].to_numpy()
    found = []
    for split, rule in itertools.product(_SPLITS, (CONSTANT, REPLAY, WITH_SHARE, OF_3_0_0)):
        probability = of_3_0_0[split] if rule == OF_3_0_0 else held_out(as_rule(rows, rule), split)
        loss = log_loss(finished, probability)
        line: dict[str, Any] = {
            "held out by": split,
            "rule": rule,
            f"log loss, {len(rows)} runs": loss.mean().round(4),
            f"log loss, the {near.sum()} that the peak leaves open": loss[near].mean().round(3),
        }
        for threshold in _THRESHOLDS:
            fits = probability >= threshold
            wrong = [int((fits & (finished == 0)).sum()), int((~fits & (finished == 1)).sum())]
            line[f"failed, said to fit / finished, refused, at {threshold:g}"] = f"{wrong[0]} / {wrong[1]}"
        found.append(line)
    return found


def edges(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """How far runs contradict a constant: the most GiB free where a run failed, and the least where one finished."""
    found = []
    for (name, several), rule in itertools.product({"one": False, "several": True}.items(), (CONSTANT, REPLAY)):
        side = as_rule(rows[((rows["number_gpus"] > 1) == several) & undecided(rows)], rule)
        failed, ran = (free_gib(side[side[LABEL] == outcome]) for outcome in (0, 1))
        most, least = f"{failed.max():.2f}", f"{ran.min():.2f}"
        found.append({"GPUs": name, "rule": rule, "most of a failed run": most, "least of a finished one": least})
    return found


def main(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="CSV of runs, for pipeline/validation/benchmark_runs")
    ] = None,
) -> None:
    """Replay tables of runs, or print the comparison.

    The exit code is 2 for bad input, and 1 if a job cannot be recorded.
    """
    try:
        if runs:
            replayed(runs).to_csv(ROWS, index=False, lineterminator="\n")
    except BadInput as error:
        typer.echo(error, err=True)
        raise typer.Exit(2) from None
    except AutoConfError as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from None
    rows, jobs = read(), read_jobs()
    of_3_0_0 = {split: real_probabilities(jobs, rows, split) for split in _SPLITS}
    typer.echo(f"{markdown(side_by_side(rows, of_3_0_0))}\n\n{markdown(edges(rows))}")


if __name__ == "__main__":
    typer.run(main)
