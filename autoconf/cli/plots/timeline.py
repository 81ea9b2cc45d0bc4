"""Draw a replay: allocated and reserved memory over the steps of a job, and the memory of the GPU."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np

from autoconf.cli.plots.answer_grid import SEPARATOR
from autoconf.cli.plots.memory_bars import settings_of
from autoconf.cli.plots.sheet import FAINT, INK, Sheet, wrapped
from autoconf.jobs.job import Job
from autoconf.memory.units import GIB, Floats, Integers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from autoconf.pipeline.replay.judge import Timeline, Verdict

# Colors of Okabe and Ito, as for the bars.
ALLOCATED, RESERVED, FAILURE = "#0072B2", "#E69F00", "#D55E00"
_POINTS = 4000  # points of a line; more would not be visible
_NARROW = 0.06  # share of the events of a step that is too narrow for a label

# Inches.
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _PLOT_TOP, _PLOT_BOTTOM = 8.0, 4.9, 0.75, 0.3, 1.1, 0.98
_LINE, _LETTERS_PER_INCH = 0.19, 14.5


def picture(job: Job, gpus: int, verdict: Verdict, drawn: Timeline) -> Figure:
    """Draw a replay; save the result with its ``savefig``.

    Raises:
        AutoConfError: matplotlib does not import.
    """
    across = _WIDTH - _LEFT - _RIGHT
    subtitle = wrapped(SEPARATOR.join(settings_of(job)), across)
    height = _HEIGHT + _LINE * len(subtitle)
    sheet = Sheet(_WIDTH, height)
    sheet.write_title(_LEFT, 0.42, title(gpus, verdict))
    for line, words in enumerate(subtitle):
        sheet.write(_LEFT, 0.68 + _LINE * line, words)
    for line, words in enumerate(_below(verdict, int(across * _LETTERS_PER_INCH))):
        sheet.write(_LEFT, height - _PLOT_BOTTOM + 0.5 + _LINE * line, words, color=INK)
    top = _PLOT_TOP + _LINE * (len(subtitle) - 1)
    _draw(sheet.axes(_LEFT, top, across, height - top - _PLOT_BOTTOM), verdict, drawn)
    return sheet.figure


def title(gpus: int, verdict: Verdict) -> str:
    """The result of the replay in one line."""
    where = "1 GPU" if gpus == 1 else f"each of {gpus} GPUs"
    runs = "runs" if verdict.fits else "does not run"
    return f"On {where}: {runs}, needs {verdict.needed_memory_gib:.1f} of {verdict.usable_memory_gib:g} GiB"


def _below(verdict: Verdict, letters: int) -> list[str]:
    words = (
        f"{verdict.peak_memory_gib:.2f} GiB allocated, {verdict.fragmentation_gib:.2f} of fragmentation, "
        f"{verdict.overhead_gib:g} not PyTorch's; {verdict.expandable_segments_gib:.2f} with expandable segments."
    )
    fails = f"It {verdict.failure}." if verdict.failure else ""
    return [line for text in (words, fails) if text for line in textwrap.wrap(text, letters)]


def _thinned(values: Integers) -> tuple[Integers, Floats]:
    """Events and GiB of a line with few points, each the maximum of its interval."""
    stretch = max(1, -(-len(values) // _POINTS))
    starts = np.arange(0, len(values), stretch)
    return starts, np.maximum.reduceat(values, starts) / GIB if len(values) else np.array([])


def _draw(axes: Axes, verdict: Verdict, drawn: Timeline) -> None:
    events, allocated = _thinned(drawn.allocated)
    axes.fill_between(events, allocated, color=ALLOCATED, alpha=0.25, linewidth=0)
    axes.plot(events, allocated, color=ALLOCATED, linewidth=0.9, label="allocated")
    axes.plot(*_thinned(drawn.free_reserved), color=RESERVED, linewidth=1, linestyle=":", label="reserved, no limit")
    axes.plot(*_thinned(drawn.reserved), color=RESERVED, linewidth=1.4, label="reserved on this GPU")
    capacity = verdict.usable_memory_gib - verdict.overhead_gib
    axes.axhline(verdict.usable_memory_gib, color=INK, linewidth=1.6)
    axes.axhline(capacity, color=INK, linewidth=0.9, linestyle="--", label=f"PyTorch's share of it, {capacity:.2f}")
    if drawn.failed_at is not None:
        at = drawn.failed_at[0]
        last = drawn.reserved[-1] / GIB if len(drawn.reserved) else 0.0
        axes.plot([at], [last], marker="X", markersize=9, color=FAILURE, linestyle="none", label="no room", zorder=5)
    most = max(verdict.usable_memory_gib, verdict.peak_reserved_gib)
    axes.set_xlim(0, len(drawn.allocated))
    axes.set_ylim(0, most * 1.06)
    axes.set_ylabel("GiB of the GPU", fontsize=8.5, color=FAINT, loc="top")
    _name_steps(axes, drawn)
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=5, fontsize=8, frameon=False, borderpad=0,
        borderaxespad=0.3, handlelength=1.4, columnspacing=1.2, labelcolor=INK,
    )  # fmt: skip


def _name_steps(axes: Axes, drawn: Timeline) -> None:
    for _, start in drawn.steps[1:]:
        axes.axvline(start, color=FAINT, linewidth=0.6, alpha=0.5)
    ends = [start for _, start in drawn.steps[1:]] + [len(drawn.allocated)]
    widths = {name: end - start for (name, start), end in zip(drawn.steps, ends, strict=True)}
    named = [(name, start) for name, start in drawn.steps if widths[name] > _NARROW * len(drawn.allocated)]
    axes.set_xticks([start for _, start in named], [name for name, _ in named], ha="left")
    axes.tick_params(length=0, pad=3, labelsize=8, labelcolor=FAINT)
    for side in axes.spines.values():
        side.set_visible(False)
