"""The variables of a command as settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from autoconf.errors import BadInput
from autoconf.jobs.importers.key_table import Setting, job_keys
from autoconf.jobs.importers.launch_options import PlaceOf

_VISIBLE = "CUDA_VISIBLE_DEVICES"
# pytorch v2.13.0, c10/core/AllocatorConfig.cpp; the second is the newer name. Pairs such as expandable_segments:True.
OF_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def environment_settings(variables: Mapping[str, str], place: PlaceOf) -> Iterator[Setting]:
    """The variables of a command that change memory or count GPUs."""
    table = job_keys().dialects["environment"]
    for name, value in variables.items():
        if name in OF_ALLOCATOR:
            pairs = dict(pair.strip().lower().split(":", 1) for pair in value.split(",") if ":" in pair)
            if expandable := pairs.get("expandable_segments"):
                yield Setting(place(name), "environment", "expandable_segments", expandable)
        elif table.knows(name):
            yield Setting(place(name), "environment", name, value)


def check_processes(variables: Mapping[str, str], place: PlaceOf) -> None:
    """Refuse ms-swift with several GPUs in one process, over which it spreads layers (v4.5.2, swift/cli/main.py)."""
    processes = variables.get("NPROC_PER_NODE", "1")
    gpus = len(variables.get(_VISIBLE, "").split(","))
    if processes.isdecimal() and gpus > int(processes):
        raise BadInput(
            f"{place(_VISIBLE)}: with {gpus} GPUs and NPROC_PER_NODE {processes} ms-swift spreads the layers of one "
            f"model over several GPUs, which is not covered; set NPROC_PER_NODE={gpus}, or give the "
            "job by options instead of --job"
        )
