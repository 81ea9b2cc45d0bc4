"""Trace jobs with the installed libraries: read jobs from standard input, write figures to standard output, in JSON."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.progress import track

from autoconf.jobs.stack import Stack
from autoconf.pipeline.catalog import Architecture
from autoconf.pipeline.tracing.model_setup import TrainingSetup
from autoconf.pipeline.tracing.recorder import TraceError
from autoconf.pipeline.validation import rank_trace


def traced(job: dict[str, Any]) -> dict[str, Any]:
    """The figures of one job, or the problem that prevents tracing."""
    parsed = TrainingSetup(Architecture(**job["architecture"]), job["method"], Stack(**job["stack"]), job["gpus"])
    try:
        return asdict(rank_trace.figures(parsed))
    except (TraceError, ValueError, AttributeError, RuntimeError) as error:
        # Models, libraries and their combinations can raise any of these; the result names the exception.
        return {"problem": f"{type(error).__name__}: {error}"}


def main() -> None:
    jobs = json.load(sys.stdin)
    with redirect_stdout(sys.stderr):  # libraries print
        figures = [traced(job) for job in track(jobs, "tracing", console=Console(stderr=True), transient=True)]
    json.dump(figures, sys.stdout)


if __name__ == "__main__":
    main()  # without typer, which the environments of old libraries need not have
