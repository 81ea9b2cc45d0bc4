"""Replay jobs given as JSON on standard input, with whatever libraries are installed; figures go to standard output as
JSON.
"""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from typing import Any

from autoconf.jobs.stack import Stack
from autoconf.memory.replay import least_capacity, replay
from autoconf.memory.units import GIB
from autoconf.pipeline.catalog import Architecture
from autoconf.pipeline.replay.record import Batches, record
from autoconf.pipeline.tracing.model_setup import TrainingSetup
from autoconf.pipeline.tracing.recorder import TraceError


def replayed(job: dict[str, Any]) -> dict[str, Any]:
    """Replay a job on GPUs of its ``capacities_gib``.

    Returns:
        The peak of allocated memory, and for each capacity the peak of reserved memory, whether the job ran out of
        memory, and how often all free segments were released; memory in GiB. ``{"problem": text}`` if the job cannot
        be recorded.
    """
    parsed = TrainingSetup(Architecture(**job["architecture"]), job["method"], Stack(**job["stack"]), job["gpus"])
    try:
        program = record(parsed, Batches(*job["batches"]))
    except (TraceError, ValueError, AttributeError, RuntimeError, TypeError) as error:
        return {"problem": f"{type(error).__name__}: {error}"}
    found = [replay(program, int(capacity * GIB)) for capacity in job["capacities_gib"]]
    return {
        "allocated_gib": max(one.allocated for one in found) / GIB,
        "reserved_gib": [one.reserved / GIB for one in found],
        "failed": [one.failed_at is not None for one in found],
        "retries": [one.retries for one in found],
    }
    if job.get("least"):
        figures["least_gib"] = least_capacity(program).nbytes / GIB
    return figures


def main() -> None:
    jobs = json.load(sys.stdin)
    with redirect_stdout(sys.stderr):  # libraries print
        figures = []
        for number, job in enumerate(jobs, 1):
            print(f"replaying job {number} of {len(jobs)}", flush=True)
            figures.append(replayed(job))
    json.dump(figures, sys.stdout)


if __name__ == "__main__":
    main()
