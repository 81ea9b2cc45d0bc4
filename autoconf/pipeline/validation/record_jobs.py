"""Record jobs given as JSON on standard input, with whatever libraries are installed; recordings go to files.

The programs of all sizes of a job come from one recording of a short model, if that is possible; otherwise each size is
recorded at full depth.
"""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from autoconf.jobs.stack import Stack
from autoconf.pipeline.catalog import Architecture
from autoconf.pipeline.replay.event_arrays import EventArrays, as_arrays
from autoconf.pipeline.replay.record import Batches, record
from autoconf.pipeline.replay.recording import MICRO_BATCHES, recording
from autoconf.pipeline.tracing.model_setup import TrainingSetup
from autoconf.pipeline.tracing.recorder import TraceError


def recorded(job: dict[str, Any]) -> dict[str, Any]:
    """Record a job for some sizes.

    Args:
        job: architecture, method, stack, gpus, ``sizes`` (samples and tokens of each) and ``folder``, in which a file
            for each size is made.

    Returns:
        ``{"how": "short model" or "full depth"}``, or ``{"problem": text}``.
    """
    parsed = TrainingSetup(Architecture(**job["architecture"]), job["method"], Stack(**job["stack"]), job["gpus"])
    try:
        how = _write_short(parsed, job) or _write_full(parsed, job)
    except (TraceError, ValueError, AttributeError, RuntimeError, TypeError) as error:
        return {"problem": f"{type(error).__name__}: {error}"}
    return {"how": how}


def _write_short(parsed: TrainingSetup, job: dict[str, Any]) -> str:
    try:
        found = recording(parsed)
    except TraceError:
        return ""
    for number, (samples, tokens) in enumerate(job["sizes"]):
        _write(found.events(samples * tokens, parsed.gpus), job["folder"], number)
    return "short model"


def _write_full(parsed: TrainingSetup, job: dict[str, Any]) -> str:
    micro_batches = MICRO_BATCHES if parsed.stack.gradient_accumulation else 1
    for number, (samples, tokens) in enumerate(job["sizes"]):
        _write(as_arrays(record(parsed, Batches(samples, tokens, micro_batches)).events), job["folder"], number)
    return "full depth"


def _write(events: EventArrays, folder: str, number: int) -> None:
    np.savez(Path(folder) / f"{number}.npz", **events._asdict())


def main() -> None:
    jobs = json.load(sys.stdin)
    with redirect_stdout(sys.stderr):  # libraries print
        found = [recorded(job) for job in jobs]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
