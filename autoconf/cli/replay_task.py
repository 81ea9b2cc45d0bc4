"""Replay one job for the service, which runs this module as a process: a job in JSON comes in, the result goes out."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from autoconf.cli.replay import ReplayOptions, replay_notes, replayed
from autoconf.errors import AutoConfError, BadInput
from autoconf.jobs.queries import ESTIMATE, NUMBER_GPUS
from autoconf.memory.allocator_settings import AllocatorSettings
from autoconf.memory.units import GIB, Integers
from autoconf.predictor import registry
from autoconf.predictor.build_extra import check_build_extra

if TYPE_CHECKING:
    from autoconf.pipeline.replay.judge import Timeline

_POINTS = 600  # of each line


def replay_job(fields: Mapping[str, Any], usable_gib: float) -> dict[str, Any]:
    """Replay the allocations of one job.

    Args:
        fields: fields of the job, and its number of GPUs.
        usable_gib: usable memory of the GPU.

    Returns:
        The verdict, the notes, and ``timeline``: GiB of at most 600 points of each line, each the maximum of
        ``events_per_point`` events.

    Raises:
        BadInput: a field is invalid, or the job cannot be replayed.
        AutoConfError: the installation is broken.
    """
    try:
        job, numbers = ESTIMATE.parse({"model_version": registry.DEFAULT, **fields})
    except ValueError as error:
        raise BadInput(str(error)) from None
    check_build_extra("a replay")
    gpus = numbers[NUMBER_GPUS]
    verdict, drawn, basis = replayed(job, gpus, usable_gib, AllocatorSettings(), ReplayOptions())
    return {
        NUMBER_GPUS: gpus, **asdict(verdict), "training_stack": job.stack_name(), "notes": replay_notes(verdict, basis),
        "timeline": timeline(drawn),
    }  # fmt: skip


def timeline(drawn: Timeline) -> dict[str, Any]:
    """The lines of a replay with few points."""
    stretch = max(1, -(-len(drawn.allocated) // _POINTS))
    return {
        "events": len(drawn.allocated),
        "events_per_point": stretch,
        "allocated_gib": _thinned(drawn.allocated, stretch),
        "reserved_gib": _thinned(drawn.reserved, stretch),
        "steps": [{"name": name, "event": event} for name, event in drawn.steps],
        "failed_at_event": None if drawn.failed_at is None else drawn.failed_at[0],
    }


def _thinned(values: Integers, stretch: int) -> list[float]:
    if not len(values):
        return []
    most = np.maximum.reduceat(values, np.arange(0, len(values), stretch)) / GIB
    return [round(float(gib), 3) for gib in most]


def main() -> None:
    """Read ``job`` and ``usable_gib`` from standard input, and write a ``status`` and its ``content``."""
    given = json.load(sys.stdin)
    found: dict[str, Any]
    try:
        found = {"status": "ok", "content": replay_job(given["job"], given["usable_gib"])}
    except BadInput as error:
        found = {"status": "bad_input", "content": str(error)}
    except AutoConfError as error:
        found = {"status": "broken", "content": str(error)}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
