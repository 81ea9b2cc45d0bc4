"""GPU memory of a process outside PyTorch's allocator, from PyTorch's out-of-memory messages in public reports.

Such a message has the memory in use by the process, by NVML, and the memory that PyTorch's allocator holds. The
difference is the CUDA context, the loaded kernels, NCCL's buffers and everything else that does not come from the
allocator. cuBLAS workspaces do come from it: they are part of a replay, and not of this difference.

``python -m autoconf.pipeline.replay.outside_pytorch`` prints the table of docs/how-it-works/allocator.md.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import typer

from autoconf.errors import BadInput
from autoconf.memory.fragmentation import OutsidePyTorch
from autoconf.pipeline.catalog import gpu_types
from autoconf.pipeline.report import markdown

# Readings of nvidia-smi on A100s with 80 GB, in GiB, by whether there were several GPUs: the smallest difference from
# max_memory_allocated in 68 runs on one, from a run so near the limit that it had almost no cache
# (Meta-Llama-3-8B, full, 4 samples of 4,096 tokens), and the smallest difference from the replayed reserved memory in
# 12 runs on two. Both are runs of fms-acceleration's benchmarks.
A100_READINGS_GIB = {False: 0.92, True: 1.5}

# Reports give the total capacity more often than the GPU's name, so a class is a range of capacities, in GiB.
CLASSES = {
    "8 GB": (7.0, 8.5),
    "10 to 12 GB": (9.0, 12.5),
    "T4": (14.5, 14.8),
    "16 GB": (15.0, 16.5),
    "A10, A10G, L4": (21.5, 22.6),
    "A30, RTX 3090, RTX 4090": (23.4, 24.0),
    "RTX 5090": (31.2, 31.6),
    "V100 32 GB": (31.7, 31.8),
    "A100 40 GB": (39.3, 39.7),
    "A40, A6000, L40, L40S, RTX 6000 Ada": (44.2, 48.0),
    "MI250X": (60.0, 66.0),
    "A100 80 GB, A800, H100": (79.0, 79.9),
    "H100 NVL, GH200, H20, H200, B200, B300": (92.0, 300.0),
}
OTHER = "other"
# With fewer messages than this, a class and number of GPUs has the figure of all classes.
ENOUGH = 5
PERCENTILE = 90

_UNITS = {"GiB": 1.0, "MiB": 2.0**-10, "KiB": 2.0**-20, "bytes": 2.0**-30}


@dataclass(frozen=True)
class Message:
    """An out-of-memory message; memory in GiB.

    PyTorch rounds its figures to 0.01 of their unit, so the difference of three is known to 0.015 GiB.

    Attributes:
        source: address of the report.
        task: "training", or "other" for inference and jobs that are not described; only training counts for defaults.
        gpu: GPU type by the report; empty if it has none.
        gpus: "one", "several" or "unknown".
        library: "none", "ddp", "fsdp", "deepspeed" or "unknown".
        capacity_gib: total memory of the GPU.
        in_use_gib: memory in use by the process.
        allocated_gib: allocated by PyTorch.
        unallocated_gib: reserved by PyTorch but unallocated.
    """

    source: str
    task: str
    gpu: str
    gpus: str
    library: str
    capacity_gib: float
    in_use_gib: float
    allocated_gib: float
    unallocated_gib: float

    @property
    def outside_gib(self) -> float:
        """Memory of the process that PyTorch's allocator does not hold."""
        return self.in_use_gib - self.allocated_gib - self.unallocated_gib

    @property
    def several(self) -> bool:
        """Whether the job ran on several GPUs. A report without their number counts as one GPU.

        If such a report had several, the figure for one GPU is too high, not too low.
        """
        return self.gpus == "several"


@dataclass(frozen=True)
class Overhead:
    """Memory outside PyTorch, in GiB, and a phrase that says where the figure comes from."""

    gib: float
    basis: str


def size_gib(text: str) -> float:
    """Read a size of a message.

    >>> size_gib("1.30 GiB"), size_gib("388.00 MiB")
    (1.3, 0.37890625)

    Raises:
        ValueError: the text is not a number with a unit.
    """
    number, unit = text.split(" ")
    if unit not in _UNITS:
        raise ValueError(f"unit {unit!r} is not one of {', '.join(_UNITS)}")
    return float(number) * _UNITS[unit]


@cache
def messages() -> tuple[Message, ...]:
    """The messages of ``outside_pytorch.csv``, whose figures are as quoted in the reports."""
    text = (files(__package__) / "outside_pytorch.csv").read_text(encoding="utf-8")
    return tuple(
        Message(
            source=row["source"],
            task=row["task"],
            gpu=row["gpu"],
            gpus=row["gpus"],
            library=row["library"],
            capacity_gib=size_gib(row["capacity"]),
            in_use_gib=size_gib(row["in_use"]),
            allocated_gib=size_gib(row["allocated"]),
            unallocated_gib=size_gib(row["unallocated"]),
        )
        for row in csv.DictReader(text.splitlines())
    )


def gpu_class(capacity_gib: float) -> str:
    """The class of a GPU by its total memory in GiB.

    >>> gpu_class(79.25), gpu_class(44.4), gpu_class(70.0)
    ('A100 80 GB, A800, H100', 'A40, A6000, L40, L40S, RTX 6000 Ada', 'other')
    """
    return next((name for name, (low, high) in CLASSES.items() if low <= capacity_gib <= high), OTHER)


def overhead(gpus: int, gpu_type: str | None = None) -> Overhead:
    """The memory outside PyTorch to expect of a process.

    It is the 90th percentile of the messages of training on the GPU's class. If there are fewer than 5, it is the
    largest of them or the 90th percentile of this and all smaller classes, whichever is more, because it grows with the
    GPU; if even these have fewer than 10, of the 10 on the smallest GPUs. A replay that assumes too little says that a
    job fits which then runs out of memory, and the median would be too little for half of the jobs. The maximum of many
    messages rests on a single report, whose job may use libraries that others do not.

    Args:
        gpus: number of GPUs of the job.
        gpu_type: name of a type in ``gpus.yaml``; ``None`` for the figure of all types.

    Raises:
        BadInput: the type is not one of them.

    >>> overhead(1, "NVIDIA-GeForce-RTX-4090").gib < overhead(8, "NVIDIA-A100-SXM4-80GB").gib
    True
    """
    if gpu_type is not None and gpu_type not in gpu_types():
        raise BadInput(f"gpu_type: {gpu_type} is not one of {', '.join(gpu_types())}")
    return _overhead(gpus > 1, gpu_class(gpu_types()[gpu_type].usable_gib) if gpu_type else OTHER)


def by_class() -> OutsidePyTorch:
    """The same figures for any amount of memory.

    A GPU between two classes counts as the smaller one.

    >>> left = by_class().left_gib(np.array([79.15, 79.15]), np.array([1, 8]))
    >>> left.round(2).tolist() == [round(79.15 - overhead(gpus, "NVIDIA-A100-SXM4-80GB").gib, 2) for gpus in (1, 8)]
    True
    """
    starts = [0.0, *(low for low, _ in CLASSES.values())]
    names = [OTHER, *CLASSES]
    one, several = ([_overhead(some, name).gib for name in names] for some in (False, True))
    return OutsidePyTorch(tuple(starts), tuple(one), tuple(several))


def _overhead(several: bool, name: str) -> Overhead:
    """``overhead`` for a class of GPUs."""
    everywhere = [message for message in _of("training") if message.several == several]
    kinds = "of any type"
    if name in CLASSES:
        capacities = sorted(message.capacity_gib for message in everywhere)
        most = max([CLASSES[name][1], *capacities[2 * ENOUGH - 1 : 2 * ENOUGH]])
        everywhere = [message for message in everywhere if message.capacity_gib <= most]
        kinds = f"of up to {most:.4g} GiB"
    same = [message for message in everywhere if gpu_class(message.capacity_gib) == name != OTHER]
    where = "several GPUs" if several else "one GPU"
    if len(same) >= ENOUGH:
        basis = f"of {len(same)} public reports of jobs on {where} of the class {name}"
        return Overhead(_percentile(same, PERCENTILE), f"the {PERCENTILE}th percentile {basis}")
    general, largest = _percentile(everywhere, PERCENTILE), _percentile(same, 100) if same else 0.0
    if largest > general:
        return Overhead(largest, f"the most of {len(same)} public reports of jobs on {where} of the class {name}")
    basis = f"of {len(everywhere)} public reports of jobs on {where} {kinds}"
    return Overhead(general, f"the {PERCENTILE}th percentile {basis}")


def _percentile(chosen: Iterable[Message], percent: float) -> float:
    return round(float(np.percentile([message.outside_gib for message in chosen], percent)), 2)


def _of(task: str) -> list[Message]:
    return [message for message in messages() if message.task == task]


def table() -> list[dict[str, Any]]:
    """A line for each task, class and number of GPUs; for training also for each library, and for all."""
    lines = _lines_by_class("training")
    for library in ("none", "ddp", "fsdp", "deepspeed", "unknown"):
        lines += _lines("training", "all", library, [one for one in _of("training") if one.library == library])
    return [*lines, *_lines("training", "all", "any", _of("training")), *_lines_by_class("other")]


def _lines_by_class(task: str) -> list[dict[str, Any]]:
    lines = []
    for name in (*CLASSES, OTHER):
        lines += _lines(task, name, "any", [one for one in _of(task) if gpu_class(one.capacity_gib) == name])
    return lines


def _lines(task: str, name: str, library: str, among: Sequence[Message]) -> list[dict[str, Any]]:
    """A line for one GPU and one for several, of those that have messages."""
    lines = []
    for label, several in {"one": False, "several": True}.items():
        chosen = [message for message in among if message.several == several]
        if chosen:
            line = {"task": task, "GPU": name, "GPUs": label, "library": library, "messages": len(chosen)}
            percents = {"median": 50, "10th percentile": 10, "90th percentile": PERCENTILE}
            found = {column: f"{_percentile(chosen, percent):.2f}" for column, percent in percents.items()}
            lines.append(line | found)
    return lines


def main() -> None:
    """Print the table."""
    typer.echo(markdown(table()))


if __name__ == "__main__":
    typer.run(main)
