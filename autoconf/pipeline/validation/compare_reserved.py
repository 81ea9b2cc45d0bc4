"""Compare what replays reserve with what nvidia-smi read: runs with their own stack and libraries.

``python -m autoconf.pipeline.validation.compare_reserved RUNS.csv`` prints a row for each run that finished on one GPU
(``--gpus 2``: on two) and has a reading, and the median and 95th percentile of the difference. It takes about a minute
a run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from autoconf.errors import AutoConfError, BadInput
from autoconf.pipeline.replay.outside_pytorch import A100_READINGS_GIB
from autoconf.pipeline.report import markdown
from autoconf.pipeline.validation import environments
from autoconf.pipeline.validation.benchmark_runs import Run, read_runs


@dataclass(frozen=True)
class Reserved:
    """A run, and what its replay came to on the run's GPU; GiB."""

    run: Run
    allocated_gib: float = 0.0
    reserved_gib: float = 0.0
    failed: bool = False
    problem: str = ""

    @property
    def difference_percent(self) -> float | None:
        """Of reserved and not PyTorch's memory from what nvidia-smi read."""
        if self.problem or self.failed or self.run.in_use_gib is None:
            return None
        return 100 * ((self.reserved_gib + A100_READINGS_GIB[self.run.gpus > 1]) / self.run.in_use_gib - 1)


def comparable(runs: Sequence[Run], frameworks: Sequence[str], gpus: int = 1) -> list[Run]:
    """Finished runs on a number of GPUs that have a reading, of some frameworks."""
    return [
        run
        for run in runs
        if run.gpus == gpus and not run.failed and run.in_use_gib and run.peak_gib and run.framework in frameworks
    ]


def compare(runs: Sequence[Run]) -> list[Reserved]:
    """Replay runs in environments with their libraries, at the capacity that their GPU had for PyTorch."""
    found: dict[int, Reserved] = {}
    for libraries in dict.fromkeys(run.libraries for run in runs):
        theirs = [run for run in runs if run.libraries == libraries]
        jobs = [_job(run) for run in theirs]
        for run, figures in zip(theirs, environments.run(libraries, _MODULE, jobs), strict=True):
            figures.pop("retries", None)
            found[run.line] = Reserved(run, **figures)
    return [found[run.line] for run in runs]


_MODULE = "autoconf.pipeline.validation.replay_jobs"


def _job(run: Run) -> dict[str, Any]:
    return {**run.replay_job(), "capacity_gib": run.usable_gib - A100_READINGS_GIB[run.gpus > 1]}


def table(found: Sequence[Reserved]) -> list[dict[str, Any]]:
    """A line for each run."""
    return [
        {
            "line": one.run.line,
            "run": f"{one.run.model.split('/')[-1]} {one.run.method}, {one.run.framework}, "
            f"{one.run.tokens_per_gpu // one.run.samples:,} x {one.run.samples}",
            "measured: allocated / in use": f"{one.run.peak_gib:.2f} / {one.run.in_use_gib:.2f}",
            "replayed: allocated / reserved": f"{one.allocated_gib:.2f} / {one.reserved_gib:.2f}",
            "reserved + not PyTorch's, difference": _difference(one),
        }
        for one in found
    ]


def _difference(one: Reserved) -> str:
    if one.problem or one.failed:
        return one.problem.split(":")[0] or "out of memory in the replay"
    return f"{one.difference_percent:+.1f} %"


def summary(found: Sequence[Reserved]) -> str:
    """Median and 95th percentile of the absolute difference."""
    off = np.abs([one.difference_percent for one in found if one.difference_percent is not None])
    if not len(off):
        return f"0 of {len(found)} runs were replayed to their end."
    figures = f"median {np.median(off):.1f} %, 95th percentile {np.percentile(off, 95):.1f} %, worst {off.max():.1f} %"
    return f"{len(off)} of {len(found)} runs: {figures}."


def main(
    runs: Annotated[Path, typer.Argument(help="CSV of runs, as pipeline/validation/benchmark_runs.py reads it")],
    framework: Annotated[list[str] | None, typer.Option(help="runs of this framework; may be given repeatedly")] = None,
    gpus: Annotated[int, typer.Option(help="runs on this number of GPUs")] = 1,
) -> None:
    """Compare and print; exit code 2 for bad input."""
    try:
        chosen = comparable(read_runs(runs), framework or ["none"], gpus)
        found = compare(chosen)
    except BadInput as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None
    except AutoConfError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None
    print(markdown(table(found)) if found else "no run has a reading")
    print(f"\n{summary(found)}")


if __name__ == "__main__":
    typer.run(main)
