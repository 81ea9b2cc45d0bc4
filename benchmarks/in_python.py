"""Figures of the Python API: tables of jobs, single calls, imports, memory."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from commands import probe
from probes import DECORATOR
from report import Limit, Row, number

RECOMMENDER = "autoconf.min_gpu_recommender"
#: What a predictor cannot do without.
LIBRARIES = ["lightgbm", "autogluon.tabular"]
MB = 1e6

#: Bytes by which a process's peak may differ between runs of the same code: what allocators keep back.
ALLOCATOR_SLACK_MB = 50.0


def recommend_table(folder: Path, quick: bool) -> list[Row]:
    """`recommend()` on the sweep's 3,960 jobs, predictor loaded, median; the baseline is the decorated function on 400
    of these jobs (100 if quick), scaled to all; that both give the same answers is checked.
    """
    count = 100 if quick else 400
    result = probe("table", folder, 300, one_by_one=count, repetitions=5 if quick else 15)
    return [
        Row(
            f"recommend(), {result['jobs']:,} jobs",
            statistics.median(result["at_once"]),
            "s",
            baseline=result["one_by_one"] / count * result["jobs"],
            baseline_is=f"one by one (from {count})",
            note=spread(result["at_once"]),
            limit=Limit(1.0, aim=0.3),
        )
    ]


def million_jobs(folder: Path, quick: bool) -> list[Row]:
    """`recommend()` on random jobs of the version's whole domain; memory is the peak of resident memory during the call
    less that before it and less the answers' own size, for the long table and, as baseline, one a tenth as long, each
    in a fresh process. The difference may be what an allocator keeps back (50 MB).
    """
    rows = 20_000 if quick else 1_000_000
    short = probe("long_table", folder, 600, rows=rows // 10)
    long = probe("long_table", folder, 1200, rows=rows)
    extra, short_extra = long["extra_bytes"] / MB, short["extra_bytes"] / MB
    return [
        Row(
            f"recommend(), {rows:,} jobs",
            long["seconds"],
            "s",
            baseline=short["seconds"] * 10,
            baseline_is=f"ten times {rows // 10:,} jobs",
            limit=Limit(240.0),
            full_size=not quick,
        ),
        Row(
            f"recommend(), {rows:,} jobs: peak memory beyond the tables",
            extra,
            "MB",
            baseline=short_extra,
            baseline_is=f"for {rows // 10:,} jobs",
            note=f"answers: {long['answer_bytes'] / MB:.0f} MB",
            limit=Limit(max(short_extra, 0.0) + ALLOCATOR_SLACK_MB),
            full_size=not quick,
        ),
    ]


def single_call(folder: Path, quick: bool) -> list[Row]:
    """One job through the decorated function, different jobs of the sweep, predictor loaded; the baseline is a
    decorated function that returns a constant, called in turn in the same process.
    """
    count = 50 if quick else 600
    seconds = probe("single_calls", folder, 300, count=count)
    ours, constant = ([s * 1e3 for s in seconds[name]] for name in ("recommender", "constant"))
    limit = Limit(8.0, aim=5.0)
    return [
        Row(
            f"one job through the decorated function, median of {count}",
            statistics.median(ours),
            "ms",
            baseline=statistics.median(constant),
            baseline_is="constant function",
            limit=limit,
        ),
        Row(
            f"one job through the decorated function, 95th percentile of {count}",
            percentile_95(ours),
            "ms",
            baseline=percentile_95(constant),
            baseline_is="constant function",
            limit=limit,
        ),
    ]


def import_time(folder: Path, quick: bool) -> list[Row]:
    """Importing `autoconf.min_gpu_recommender` in a fresh process, in turn with importing ado's decorator alone;
    medians, after one unmeasured run of each.
    """
    ours, ado = [], []
    for _ in range(3 if quick else 21):
        ours += probe("imported", folder, 120, modules=[RECOMMENDER])["seconds"]
        ado += probe("imported", folder, 120, modules=[DECORATOR])["seconds"]
    return [
        Row(
            "import autoconf.min_gpu_recommender",
            statistics.median(ours[1:]),
            "s",
            baseline=statistics.median(ado[1:]),
            baseline_is=f"ado's decorator ({spread(ado[1:])})",
            note=spread(ours[1:]),
            limit=Limit(1.1, on_ratio=True),
        )
    ]


def first_call(folder: Path, quick: bool) -> list[Row]:
    """The first call after the import, which loads the predictor, in a fresh process, median of 11 (2 if quick), in
    turn with importing LightGBM and AutoGluon alone, which is most of it; memory is resident memory after it and a
    hundred more calls, less that after importing ado's decorator alone.
    """
    repetitions = 2 if quick else 11
    ours, libraries, ado = [], [], []
    for _ in range(repetitions):
        ours.append(probe("first_call", folder, 120))
        libraries.append(probe("imported", folder, 120, modules=[DECORATOR, *LIBRARIES]))
        ado.append(probe("imported", folder, 120, modules=[DECORATOR]))
    held, held_by_libraries, held_by_ado = (median(results, "resident_bytes") for results in (ours, libraries, ado))
    return [
        Row(
            f"first call, median of {repetitions}",
            median(ours, "seconds"),
            "s",
            baseline=statistics.median(sum(one["seconds"][1:]) for one in libraries),
            baseline_is="importing LightGBM and AutoGluon",
            note=spread([one["seconds"] for one in ours]),
            limit=Limit(1.5),
        ),
        Row(
            "resident memory above ado's own",
            (held - held_by_ado) / MB,
            "MB",
            baseline=(held_by_libraries - held_by_ado) / MB,
            baseline_is="with LightGBM and AutoGluon imported",
            note=f"ado's own: {held_by_ado / MB:.0f} MB",
            limit=Limit(400.0),
        ),
    ]


def median(results: list[dict[str, Any]], key: str) -> float:
    """The median of one of the results' values."""
    return statistics.median(result[key] for result in results)


def percentile_95(values: list[float]) -> float:
    """The value that 95 % of them do not exceed."""
    return statistics.quantiles(values, n=20)[-1]


def spread(values: list[float]) -> str:
    """The smallest and the largest of some seconds.

    >>> spread([0.2, 0.19, 103.4])
    '0.19 to 103 s'
    """
    return f"{number(min(values))} to {number(max(values))} s"
