"""What PyTorch printed in public out-of-memory reports, next to what replays of their jobs found.

``report_replays.csv`` keeps the bounds of each report, so that a few reports can be replayed again without the others.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

FILE = Path(__file__).with_name("report_replays.csv")
_MIB_OF_A_GIB = 1024
# PyTorch prints sizes from 1 GiB on in GiB with two decimals (CUDACachingAllocator.cpp, format_size).
_ROUNDING_MIB = 0.005 * _MIB_OF_A_GIB


class Message(BaseModel):
    """What PyTorch's error says. Older releases give what is reserved instead of "reserved but unallocated"."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tried_mib: float
    allocated_gib: float
    unallocated_gib: float = Field(description="reserved by PyTorch but unallocated")
    free_gib: float = Field(description="free memory of the GPU that CUDA reports")

    @property
    def capacity_gib(self) -> float:
        """What PyTorch could reserve at most."""
        return self.allocated_gib + self.unallocated_gib + self.free_gib


@dataclass(frozen=True)
class Outcome:
    """The replay of one stack: figures at the failure."""

    tried_mib: float
    allocated_gib: float
    unallocated_gib: float
    place: str


_FIGURES = (
    ("tried, MiB", "tried_mib", 0),
    ("allocated, GiB", "allocated_gib", 2),
    ("unallocated, GiB", "unallocated_gib", 2),
)
_COLUMNS = ("source", "stacks", "failed", *(f"{figure}_{end}" for _, figure, _ in _FIGURES for end in ("low", "high")))


@dataclass(frozen=True)
class Found:
    """What the replays of a report found on all stacks that it allows.

    Attributes:
        stacks: how many stacks.
        failed: how many of them run out of memory.
        bounds: the smallest and the largest of each figure over those that do, as texts with its decimals.
        where: where they do.
    """

    stacks: int
    failed: int
    bounds: dict[str, tuple[str, str]]
    where: str

    @classmethod
    def of(cls, outcomes: Sequence[Outcome | None]) -> Found:
        """Sum up outcomes; ``None`` is a stack that runs to the end."""
        failures = [outcome for outcome in outcomes if outcome is not None]
        bounds = {}
        for _, figure, digits in _FIGURES if failures else ():
            values = [getattr(outcome, figure) for outcome in failures]
            bounds[figure] = (f"{min(values):.{digits}f}", f"{max(values):.{digits}f}")
        places = dict.fromkeys(outcome.place for outcome in failures)
        return cls(len(outcomes), len(failures), bounds, "; ".join(places))


def kept(path: Path = FILE) -> dict[str, Found]:
    """What replays found, by the address of the report."""
    with path.open(encoding="utf-8", newline="") as file:
        return {row["source"]: _found(row) for row in csv.DictReader(file)}


def _found(row: dict[str, str]) -> Found:
    failed = int(row["failed"])
    bounds = {figure: (row[f"{figure}_low"], row[f"{figure}_high"]) for _, figure, _ in _FIGURES if failed}
    return Found(int(row["stacks"]), failed, bounds, row["where"])


def keep(found: dict[str, Found], path: Path = FILE) -> None:
    """Write what replays found; the order is that of ``found``."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*_COLUMNS, "where"))
        for source, one in found.items():
            ends = [end for _, figure, _ in _FIGURES for end in one.bounds.get(figure, ("", ""))]
            writer.writerow((source, one.stacks, one.failed, *ends, one.where))


@dataclass(frozen=True)
class Comparison:
    """A report next to its replays."""

    name: str
    source: str
    message: Message
    found: Found

    def off(self, figure: str) -> float:
        """By how much what PyTorch printed lies outside of the bounds, in their unit; 0 inside."""
        low, high = (float(end) for end in self.found.bounds[figure])
        printed = getattr(self.message, figure)
        rounding = _ROUNDING_MIB if figure == "tried_mib" and printed >= _MIB_OF_A_GIB else 0.0
        return max(low - printed - rounding, printed - high - rounding, 0.0)

    def row(self) -> dict[str, Any]:
        """A line of the table."""
        cells = {"report": f"[{self.name}]({self.source})"}
        for title, figure, digits in _FIGURES:
            cells[f"{title}: printed"] = f"{getattr(self.message, figure):.{digits}f}"
            cells["replayed" + " " * len(cells)] = self._range(figure)
        return {
            **cells,
            "stacks that fail": f"{self.found.failed} of {self.found.stacks}",
            "where": self.found.where or "-",
        }

    def _range(self, figure: str) -> str:
        if not self.found.failed:
            return "-"
        low, high = self.found.bounds[figure]
        return low if low == high else f"{low} to {high}"


def summary(compared: Iterable[Comparison]) -> str:
    """How far the printed figures lie outside of the replayed bounds."""
    all_of_them = list(compared)
    failing = [one for one in all_of_them if one.found.failed]
    lines = [f"{len(failing)} of {len(all_of_them)} reports run out of memory in a replay of some stack."]
    for title, figure, digits in _FIGURES if failing else ():
        off = [one.off(figure) for one in failing]
        inside = sum(value < 10**-digits for value in off)
        lines.append(
            f"{title}: {inside} printed figures are within the bounds, the median is {np.median(off):.{digits}f} "
            f"outside, the largest {max(off):.{digits}f}."
        )
    return "\n".join(lines)
