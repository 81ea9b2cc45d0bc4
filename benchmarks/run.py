"""Measure AutoConf's speed and memory, each figure next to its baseline from the same run.

`python benchmarks/run.py` measures everything and writes BENCHMARKS.md. With `--quick` or `--only` the report goes to
the terminal, unless `--output` names a file. The exit code is 1 if a figure could not be measured; one that was, but
misses its requirement, says so in the table.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import in_python
import through_ado
from commands import ROOT
from report import Failure, Row, markdown
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

FIGURES: dict[str, Callable[[Path, bool], list[Row]]] = {
    "recommend-table": in_python.recommend_table,
    "million-jobs": in_python.million_jobs,
    "single-call": in_python.single_call,
    "import-time": in_python.import_time,
    "first-call": in_python.first_call,
    "run-experiment": through_ado.one_point,
    "two-nodes": through_ado.two_nodes,
    "sweep": through_ado.sweep,
    "long-sweep": through_ado.long_sweep,
}


def main(arguments: list[str] | None = None) -> int:
    """Measure what is asked for and write the report."""
    options = parse(arguments)
    names = options.only or list(FIGURES)
    rows = measure(names, options.quick)
    methods = {name: " ".join((FIGURES[name].__doc__ or "").split()) for name in names}
    report = markdown(rows, methods, reproduction(options))
    if options.output:
        options.output.write_text(report, encoding="utf-8")
        Console(stderr=True).print(f"written: {options.output}")
    else:
        print(report)
    return int(any(isinstance(row, Failure) for row in rows))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description="Measure AutoConf, each figure next to its baseline.")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that everything works")
    parser.add_argument("--only", nargs="+", choices=FIGURES, metavar="NAME", help=f"some of: {', '.join(FIGURES)}")
    parser.add_argument("--output", type=Path, help="file to write; a full run's default is BENCHMARKS.md")
    options = parser.parse_args(arguments)
    if options.output is None and not options.quick and not options.only:
        options.output = ROOT / "BENCHMARKS.md"
    return options


def reproduction(options: argparse.Namespace) -> str:
    """The command that makes such a report, without the name of its file."""
    quick = ["--quick"] if options.quick else []
    only = ["--only", *options.only] if options.only else []
    return " ".join(["python benchmarks/run.py", *quick, *only])


def measure(names: list[str], quick: bool) -> list[Row | Failure]:
    """Measure figures one after the other, each in a temporary folder of its own. A failure does not stop the rest."""
    rows: list[Row | Failure] = []
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for index, name in enumerate(names, start=1):
            task = progress.add_task(f"{index}/{len(names)} {name}", total=1)
            # A short path: Ray makes sockets below it, whose names may have 107 characters at most.
            with tempfile.TemporaryDirectory(prefix="ac-", ignore_cleanup_errors=True) as folder:
                try:
                    rows += FIGURES[name](Path(folder), quick)
                except Exception as error:
                    rows.append(Failure(name, f"{type(error).__name__}: {error}"))
            progress.advance(task)
    return rows


if __name__ == "__main__":
    sys.exit(main())
