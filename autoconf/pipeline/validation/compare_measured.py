"""Compare traced peaks with measured peaks of real runs, each traced with its own stack and libraries.

``python -m autoconf.pipeline.validation.compare_measured RUNS.csv`` prints, for each group of stacks, how far the
traced peak is from the measured one, the rows that differ most, and wrong decisions about failed and finished runs.
``--today`` traces the same rows with the installed libraries instead. Environments with the libraries of the runs are
made on demand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from autoconf.errors import AutoConfError, BadInput
from autoconf.memory.units import GIB
from autoconf.pipeline.report import PAGES, VALIDATION, markdown, require_section, write_section
from autoconf.pipeline.validation import environments
from autoconf.pipeline.validation.benchmark_runs import Run, read_runs
from autoconf.pipeline.validation.rank_figures import RankFigures

# aten/src/ATen/cuda/CublasHandlePool.cpp: :4096:2:16:8 KiB for each handle and stream on an A100, one for the main
# thread and one for autograd; PyTorch's allocator counts them.
CUBLAS_GIB = 2 * (2 * 4096 + 8 * 16) * 1024 / GIB
_WORTH_A_CAUSE = 2.0  # percent, between old and installed libraries

# The safety margin on top of the traced peak, by whether there are several GPUs: a constant in GiB, and a share of
# activations, between whose blocks PyTorch's allocator leaves gaps. docs/how-it-works/calibration.md derives them.
RESERVE = {False: (3.0, 0.0), True: (3.1, 0.22)}


def reserve_gib(gpus: int, activations_gib: float) -> float:
    """The safety margin on top of the traced peak, in GiB.

    >>> reserve_gib(1, 40.0), round(reserve_gib(2, 40.0), 1)
    (3.0, 11.9)
    """
    base, share = RESERVE[gpus > 1]
    return base + share * activations_gib


@dataclass(frozen=True)
class Group:
    """Rows that are evaluated together, and the required figures, in percent of the measured peak."""

    name: str
    frameworks: tuple[str, ...]
    median: tuple[float, float]  # required, target
    percentile_95: tuple[float, float]
    worst: tuple[float, float]


GROUPS = (
    Group("full and LoRA, plain transformers", ("none",), (0.5, 0.1), (2, 0.5), (4, 1)),
    Group("QLoRA, bitsandbytes", ("baseline-peft-bnb", "accelerated-peft-bnb"), (1, 0.3), (3, 1), (6, 3)),
    Group(
        "full, LoRA and QLoRA with fused kernels",
        (
            "foak-fast-kernels",
            "foak-fast-kernels-liger",
            "accelerated-peft-bnb-foak",
            "accelerated-peft-bnb-foak-liger",
        ),
        (4, 1),
        (8, 3),
        (12, 6),
    ),
)


@dataclass(frozen=True)
class Comparison:
    """A run and its traced peak; ``None`` if the run's code cannot be traced."""

    run: Run
    traced_gib: float | None
    activations_gib: float = 0.0  # the part that grows with the tokens
    problem: str = ""

    @property
    def difference_percent(self) -> float | None:
        if self.traced_gib is None or self.run.peak_gib is None:
            return None
        return 100 * ((self.traced_gib - self.run.unreported_gib) / self.run.peak_gib - 1)

    @property
    def predicted_to_fit(self) -> bool | None:
        if self.traced_gib is None:
            return None
        return self.traced_gib + reserve_gib(self.run.gpus, self.activations_gib) <= self.run.usable_gib


def compare(runs: Sequence[Run], *, today: bool = False) -> list[Comparison]:
    """Trace every run, each distinct job once, in an environment with its libraries, or in this one for ``today``."""
    jobs: dict[environments.Libraries | None, dict[str, dict[str, Any]]] = {}
    for run in runs:
        jobs.setdefault(None if today else run.libraries, {}).setdefault(json.dumps(run.job()), run.job())
    found: dict[tuple[environments.Libraries | None, str], dict[str, Any]] = {}
    for libraries, distinct in jobs.items():
        for key, figures in zip(distinct, environments.traced(libraries, list(distinct.values())), strict=True):
            found[libraries, key] = figures
    return [_comparison(run, found[None if today else run.libraries, json.dumps(run.job())]) for run in runs]


def _comparison(run: Run, figures: dict[str, Any]) -> Comparison:
    if "problem" in figures:
        return Comparison(run, None, problem=figures["problem"])
    held = RankFigures(**figures)
    peak = held.peak_bytes(run.tokens_per_gpu, run.gpus)
    return Comparison(run, peak / GIB + CUBLAS_GIB, held.activation_bytes(run.tokens_per_gpu, run.gpus) / GIB)


def in_group(comparisons: Sequence[Comparison], group: Group) -> list[Comparison]:
    """Rows of a group that have a measured peak."""
    return [c for c in comparisons if c.run.framework in group.frameworks and c.run.peak_gib is not None]


def judged(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Rows of all groups, whose stacks are traced as they ran."""
    return [c for group in GROUPS for c in in_group(comparisons, group)]


def differences(comparisons: Sequence[Comparison]) -> np.ndarray:
    """Absolute differences in percent; infinite if a run could not be traced."""
    found = (c.difference_percent for c in comparisons)
    return np.array([np.inf if d is None else abs(d) for d in found])


def group_table(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """A row for each group: median, 95th percentile and worst of the absolute difference, and the required figures."""
    rows = []
    for group in GROUPS:
        found = differences(in_group(comparisons, group))
        off = found[np.isfinite(found)]
        if not len(off):
            continue
        figures = (np.median(off), np.percentile(off, 95), off.max())
        asked = (group.median, group.percentile_95, group.worst)
        rows.append(
            {
                "rows": group.name,
                "traced": f"{len(off)} of {len(found)}",
                **{
                    name: f"{figure:.{2 if figure < 10 else 3}g} % (required {required:g}, target {target:g})"
                    for name, figure, (required, target) in zip(
                        ("median", "95th percentile", "worst"), figures, asked, strict=True
                    )
                },
            }
        )
    return rows


def required_is_met(comparisons: Sequence[Comparison]) -> bool:
    """Whether every group can be traced and meets its requirements."""
    for group in GROUPS:
        off = differences(in_group(comparisons, group))
        asked = zip((50, 95, 100), (group.median, group.percentile_95, group.worst), strict=True)
        # Percentiles of infinite values are NaN, and comparisons with NaN are false.
        if not np.isfinite(off).all() or any(
            np.percentile(off, share) > most for share, (most, _) in asked if len(off)
        ):
            return False
    return True


def by_stack(comparisons: Sequence[Comparison], above_percent: float) -> list[dict[str, Any]]:
    """Models and stacks whose mean difference exceeds a limit, or that cannot be traced."""
    together: dict[tuple[str, str, str, int], list[Comparison]] = {}
    for c in judged(comparisons):
        together.setdefault((c.run.model, c.run.method, c.run.stack_name, c.run.gpus), []).append(c)
    rows = []
    for (model, method, stack, gpus), of_stack in together.items():
        found = [c.difference_percent for c in of_stack if c.difference_percent is not None]
        if not found or abs(np.mean(found)) > above_percent:
            difference = f"{np.mean(found):+.1f} %" if found else of_stack[0].problem.split(":")[0]
            rows.append({"model": model, "method": method, "stack": stack, "GPUs": gpus, "mean difference": difference})
    return rows


def worst_rows(comparisons: Sequence[Comparison], count: int = 10) -> list[dict[str, Any]]:
    """The rows that differ most."""
    measured = judged(comparisons)
    order = np.argsort(-differences(measured))[:count]
    return [_row(measured[index]) for index in order]


def wrong_decisions(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """False positives and false negatives, by the traced peak and the safety margin."""
    return [_row(c) for c in comparisons if c.predicted_to_fit is None or c.predicted_to_fit == c.run.failed]


def _row(comparison: Comparison) -> dict[str, Any]:
    run, difference = comparison.run, comparison.difference_percent
    return {
        "line": run.line,
        "model": run.model,
        "method": run.method,
        "stack": run.stack_name,
        "GPUs": run.gpus,
        "tokens per GPU": run.tokens_per_gpu,
        "measured GiB": "failed" if run.failed else run.peak_gib,
        "traced GiB": comparison.problem if comparison.traced_gib is None else round(comparison.traced_gib, 2),
        "difference": "" if difference is None else f"{difference:+.2f} %",
    }


def draw(comparisons: Sequence[Comparison], path: Path) -> None:
    """Draw the difference of every row with a measured peak, colored by group; PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    for group in GROUPS:
        rows = [c for c in in_group(comparisons, group) if c.traced_gib is not None]
        axes.scatter(
            np.array([c.run.peak_gib for c in rows]),
            np.array([c.difference_percent for c in rows]),
            s=18,
            alpha=0.7,
            label=f"{group.name} ({len(rows)})",
        )
    axes.axhline(0, color="gray", linewidth=0.8)
    axes.set_xlabel("peak measured on the GPU, GiB")
    axes.set_ylabel("traced over measured, %")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=100)


def section(comparisons: Sequence[Comparison], picture: str | None, *, today: bool) -> str:
    """The section of ``docs/versions/validation.md`` about a table of runs."""
    parts = []
    if groups := group_table(comparisons):
        parts += ["Absolute difference of traced and measured peaks:", markdown(groups)]
    if picture:
        parts.append(f"![Traced over measured peaks]({picture})")
    if today:
        if stacks := by_stack(comparisons, _WORTH_A_CAUSE):
            parts += [f"Stacks that differ by more than {_WORTH_A_CAUSE:g} %:", markdown(stacks)]
        else:
            parts.append(f"No stack differs by more than {_WORTH_A_CAUSE:g} %.")
        return "\n\n".join(parts)
    if worst := worst_rows(comparisons):
        parts += ["The rows that disagree most:", markdown(worst)]
    wrong = wrong_decisions(comparisons)
    parts.append(f"{len(wrong)} of {len(comparisons)} runs are decided wrongly{':' if wrong else '.'}")
    return "\n\n".join([*parts, *([markdown(wrong)] if wrong else [])])


def write(comparisons: Sequence[Comparison], name: str, *, today: bool) -> None:
    """Write a table's section of ``docs/versions/validation.md``, and its picture."""
    picture = None
    if not today and any(c.run.peak_gib is not None for c in comparisons):
        picture = f"{name}.png"
        draw(comparisons, PAGES / picture)
    what = _section_name(name, today)
    write_section(VALIDATION, what, "make measured", section(comparisons, picture, today=today))


def _section_name(name: str, today: bool) -> str:
    return f"{name}, installed libraries" if today else name


def show(title: str, rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Print rows that have the same keys."""
    table = Table(title=title)
    for column in rows[0] if rows else ():
        table.add_column(column)
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    console.print(table if rows else f"{title}: none")


def main(
    runs: Annotated[Path, typer.Argument(help="CSV of runs, as pipeline/validation/benchmark_runs.py reads it")],
    today: Annotated[bool, typer.Option("--today", help="trace with the installed libraries, not the runs'")] = False,
    write_pages: Annotated[bool, typer.Option("--write", help="write table and picture into docs/versions")] = False,
) -> None:
    """Compare and print; exit code 1 if a required figure is missed, 2 for bad input."""
    console = Console()
    try:
        if write_pages:  # check this before minutes of tracing
            require_section(VALIDATION, _section_name(runs.stem, today), "make measured")
        comparisons = compare(read_runs(runs), today=today)
    except BadInput as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None
    except AutoConfError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None
    show("Traced peak against measured peak, absolute difference", group_table(comparisons), console)
    if today:
        show(f"Stacks that differ by more than {_WORTH_A_CAUSE:g} %", by_stack(comparisons, _WORTH_A_CAUSE), console)
    else:
        show("Rows that disagree most", worst_rows(comparisons), console)
    wrong = wrong_decisions(comparisons)
    show(f"Decided wrongly: {len(wrong)} of {len(comparisons)}", wrong, console)
    if write_pages:
        write(comparisons, runs.stem, today=today)
    raise typer.Exit(int(not today and not required_is_met(comparisons)))


if __name__ == "__main__":
    typer.run(main)
