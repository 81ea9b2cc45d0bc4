"""The report: one line a figure, next to its baseline and what is required of it, and what it was measured on."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# fmt: off
LIBRARIES = (
    "ado-autoconf", "ado-core", "ray", "autogluon.tabular", "lightgbm", "numpy", "pandas", "pydantic", "scipy",
)
# fmt: on
HEADER = ("Figure", "Measured", "Baseline", "Ratio", "Required", "Aim", "Met?")
NONE = "–"  # noqa: RUF001 - an empty cell


@dataclass(frozen=True)
class Limit:
    """What is required of a figure, and what is aimed at.

    Args:
        required: the bound, in the figure's unit or, if it is on the ratio, as one.
        aim: a stricter bound that is wished for.
        on_ratio: whether the bounds are on measured / baseline.
        at_least: whether they are lower bounds.
    """

    required: float
    aim: float | None = None
    on_ratio: bool = False
    at_least: bool = False

    def met(self, measured: float, ratio: float | None) -> str:
        """What the last column says."""
        value = ratio if self.on_ratio else measured
        if value is None:
            raise ValueError("a limit on the ratio needs a baseline")
        if not self._holds(value, self.required):
            return "**no**"
        if self.aim is None:
            return "yes"
        return "yes, and the aim" if self._holds(value, self.aim) else "yes, but not the aim"

    def _holds(self, value: float, bound: float) -> bool:
        return value >= bound if self.at_least else value <= bound

    def text(self, bound: float | None, unit: str) -> str:
        """How a bound is written in the table."""
        if bound is None:
            return NONE
        sign = "≥" if self.at_least else "≤"
        return f"{sign} {number(bound)} x baseline" if self.on_ratio else f"{sign} {quantity(bound, unit)}"


@dataclass(frozen=True)
class Row:
    """One measured figure.

    Args:
        figure: what was measured, sizes included.
        measured: the value, in ``unit``.
        unit: s, ms, MB, ...
        baseline: what it is compared with, in the same unit.
        baseline_is: what the baseline is.
        note: what else the reader should see, such as the spread.
        limit: what is required; None where nothing is.
        full_size: False for a quick run on a smaller size, which neither meets nor misses a requirement.
    """

    figure: str
    measured: float
    unit: str
    baseline: float | None = None
    baseline_is: str = ""
    note: str = ""
    limit: Limit | None = None
    full_size: bool = True

    @property
    def ratio(self) -> float | None:
        """Measured / baseline."""
        return self.measured / self.baseline if self.baseline else None

    def cells(self) -> tuple[str, ...]:
        """The row of the table."""
        limit = self.limit
        baseline = NONE if self.baseline is None else f"{quantity(self.baseline, self.unit)} {self.baseline_is}".strip()
        return (
            self.figure,
            f"{quantity(self.measured, self.unit)}{f' ({self.note})' if self.note else ''}",
            baseline,
            NONE if self.ratio is None else number(self.ratio),
            NONE if limit is None else limit.text(limit.required, self.unit),
            NONE if limit is None else limit.text(limit.aim, self.unit),
            self.met(),
        )

    def met(self) -> str:
        """Whether the requirement is met."""
        if self.limit is None:
            return NONE
        return self.limit.met(self.measured, self.ratio) if self.full_size else "smaller size"


@dataclass(frozen=True)
class Failure:
    """A figure that could not be measured, and why."""

    figure: str
    reason: str

    def cells(self) -> tuple[str, ...]:
        """The row of the table."""
        reason = " ".join(self.reason.split()).replace("|", "/")
        return self.figure, NONE, NONE, NONE, NONE, NONE, f"**failed**: {reason}"


def number(value: float) -> str:
    """A number with three significant digits, or whole if it is large.

    >>> number(0.20449), number(491.3), number(3960), number(0)
    ('0.204', '491', '3,960', '0')
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def quantity(value: float, unit: str) -> str:
    """A number with its unit."""
    return f"{number(value)} {unit}".strip()


def markdown(rows: Iterable[Row | Failure], methods: dict[str, str], command: str) -> str:
    """The report as Markdown.

    Args:
        rows: the figures.
        methods: name of each group of figures -> how it is measured.
        command: what reproduces the report.
    """
    table = [HEADER, tuple("---" for _ in HEADER), *(row.cells() for row in rows)]
    return "\n".join(
        [
            "# Benchmarks",
            "",
            f"Written by `{command}`. Each baseline comes from the same run; ratio is measured / baseline.",
            "",
            *(f"- {line}" for line in machine()),
            "",
            *(f"| {' | '.join(cells)} |" for cells in table),
            "",
            "## How each is measured",
            "",
            *(f"- `{name}`: {method}" for name, method in methods.items()),
            "",
            f"To reproduce: `make benchmark`, or `{command}`; `--only NAME` measures some of the figures again.",
            "",
        ]
    )


def machine() -> list[str]:
    """What the figures were measured on."""
    import os

    import psutil

    versions = ", ".join(f"{library} {importlib.metadata.version(library)}" for library in LIBRARIES)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return [
        f"Date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        f"CPU: {cpu_model()}, {psutil.cpu_count()} cores; load average at the end {load}",
        f"Memory: {psutil.virtual_memory().total / 2**30:.0f} GiB",
        f"Python {platform.python_version()} on {platform.system()} {platform.release()}",
        f"Libraries: {versions}",
    ]


def cpu_model() -> str:
    """The name of the CPU, as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
