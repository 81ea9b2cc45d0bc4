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
from autoconf.pipeline.replay.given import fsdp1_arguments
from autoconf.pipeline.replay.record import Batches, record
from autoconf.pipeline.tracing.model_setup import TrainingSetup
from autoconf.pipeline.tracing.recorder import TraceError


def replayed(job: dict[str, Any]) -> dict[str, Any]:
    """Replay a job on a GPU of some capacity.

    Args:
        job: architecture, method, stack, gpus, batches (samples, tokens of each, accumulation), capacity_gib, ``least``
            where the smallest sufficient capacity is wanted, too, ``compute_capability`` if it is not 8, and
            ``prefetches``, which is false where FSDP1's backward pass gathers no unit early.

    Returns:
        Peaks of allocated and reserved memory, in GiB, and whether it failed; or ``{"problem": text}``.
    """
    parsed = TrainingSetup(Architecture(**job["architecture"]), job["method"], Stack(**job["stack"]), job["gpus"])
    try:
        with fsdp1_arguments(**({} if job.get("prefetches", True) else {"backward_prefetch": None})):
            program = record(parsed, Batches(*job["batches"]), compute_capability=job.get("compute_capability", 8))
    except (TraceError, ValueError, AttributeError, RuntimeError, TypeError) as error:
        return {"problem": f"{type(error).__name__}: {error}"}
    found = replay(program, int(job["capacity_gib"] * GIB))
    figures = {
        "allocated_gib": found.allocated / GIB,
        "reserved_gib": found.reserved / GIB,
        "failed": found.failed_at is not None,
        "retries": found.retries,
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
