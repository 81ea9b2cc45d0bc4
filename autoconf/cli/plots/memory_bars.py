"""Draw an explanation as text or as a picture: bars of the memory of each GPU, and the changes that would help.

The bar of each part begins where the previous one ends, so the last bar ends at the needed memory. A line marks the
usable memory of the GPU.
"""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.text import Text

from autoconf.cli.console import is_terminal
from autoconf.cli.plots.answer_grid import SEPARATOR
from autoconf.cli.plots.sheet import FAINT, INK, Sheet, is_dark, wrapped
from autoconf.jobs.job import Job
from autoconf.planner.explanation import Explanation
from autoconf.planner.memory_parts import COLORS, drawn, heading, parts, what_would_help
from autoconf.planner.results import Estimate, layout

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PLAIN_WIDTH = 80
_FIGURES = 8  # columns of a figure before a bar
_SHORTEST_BAR = 8

# Inches.
_WIDTH, _LEFT, _RIGHT, _ROW, _BAR = 8.0, 0.85, 0.3, 0.7, 0.34
_SUBTITLE, _LINE, _AXIS, _LETTERS_PER_INCH = 0.68, 0.19, 0.62, 14.5


# --- as text ----------------------------------------------------------------------------------------------------------


def show_explanation(explanation: Explanation) -> None:
    """Print with the width and colors of a terminal, or as plain text elsewhere."""
    if is_terminal(sys.stdout):
        console = Console(highlight=False)
        for line in as_text(explanation, console.width, plain=console.options.ascii_only):
            console.print(line)
        return
    for line in as_text(explanation, _PLAIN_WIDTH, plain=True):
        typer.echo(line.plain.rstrip())


def as_text(explanation: Explanation, width: int, *, plain: bool) -> Iterator[Text]:
    """Yield the lines of an explanation.

    Args:
        explanation: what is drawn.
        width: columns that bars may take; where that leaves too few for bars, there are only numbers.
        plain: whether bars are made of ASCII.
    """
    estimates = drawn(explanation)
    for reason in dict.fromkeys(held.reason for held in explanation.at.values() if held.fits is None):
        yield from (Text(reason), Text())
    most = max((_extent(held) for held in estimates.values()), default=0.0)
    label = max((len(name) for held in estimates.values() for name in parts(held)), default=0)
    room = width - label - _FIGURES - 1
    for count, held in estimates.items():
        yield Text(heading(count, held, explanation.threshold or 0.0), style="bold")
        usable = _usable(held)
        start = 0.0
        for name, part in parts(held).items():
            yield _row(f"{name:{label}}", part, _bar(start, part, usable, most, room, plain), COLORS[name])
            start += part
        yield _row(f"{'usable':{label}}", usable, _bar(0, 0, usable, most, room, plain), "default")
        yield Text()
    yield from map(Text, what_would_help(explanation))


def _usable(held: Estimate) -> float:
    return held.usable_memory_gib or 0.0


def _extent(held: Estimate) -> float:
    """The GiB that a drawing of an estimate extends to."""
    return max(_usable(held), held.needed_memory_gib or 0.0)


def _bar(start: float, part: float, usable: float, most: float, room: int, plain: bool) -> str:
    """The bar of a part at its position, crossed by the line at usable memory."""
    if room < _SHORTEST_BAR:
        return ""
    block, line = "#|" if plain else "█│"
    scale = (room - 1) / most
    first = int(start * scale)
    length = max(int((start + part) * scale) - first, 1) if part else 0
    cells = " " * first + block * length
    at = int(usable * scale)
    return f"{cells[:at]:{at}}{line}{cells[at + 1 :]}"


def _row(name: str, gib: float, bar: str, color: str) -> Text:
    return Text.assemble(f"{name}{gib:{_FIGURES}.1f}", *((" ", (bar, color)) if bar else ()), no_wrap=True)


# --- as a picture -----------------------------------------------------------------------------------------------------


def picture(job: Job, explanation: Explanation) -> Figure:
    """Draw an explanation that has something to draw; save the result with its ``savefig``.

    Raises:
        AutoConfError: matplotlib does not import.
    """
    estimates = drawn(explanation)
    across = _WIDTH - _LEFT - _RIGHT
    subtitle = wrapped(SEPARATOR.join(settings_of(job)), across)
    sentences = (explanation.why, *what_would_help(explanation))
    letters = int(across * _LETTERS_PER_INCH)
    below = [line for text in sentences for line in textwrap.wrap(text, letters, subsequent_indent="    ")]
    top = _SUBTITLE + _LINE * len(subtitle) + 0.45  # space of the legend
    bottom = top + _ROW * len(estimates) + 0.15  # space of the label of the line
    sheet = Sheet(_WIDTH, bottom + _AXIS + _LINE * len(below) + 0.15)
    sheet.write_title(_LEFT, 0.42, _title(explanation))
    for line, words in enumerate(subtitle):
        sheet.write(_LEFT, _SUBTITLE + _LINE * line, words)
    for line, words in enumerate(below):
        sheet.write(_LEFT, bottom + _AXIS + _LINE * line, words, color=INK)
    axes = sheet.axes(_LEFT, top, across, bottom - top)
    for row, (count, held) in enumerate(estimates.items()):
        _draw_bar(axes, row, count, held, explanation.threshold or 0.0)
    _finish(axes, estimates)
    return sheet.figure


def _title(explanation: Explanation) -> str:
    found = explanation.recommendation
    if found.gpus is None or found.workers is None:
        return "No recommendation: where the memory goes"
    return f"{layout(found.gpus, found.workers)}: where the memory goes"


def settings_of(job: Job) -> list[str]:
    """A job in a few words for the line below a title."""
    batch = job.batch_size or f"{job.per_device_train_batch_size} on each GPU"
    gpu = str(job.gpu_model) if job.gpu_memory_gib is None else f"{job.gpu_model} GPU of {job.gpu_memory_gib:g} GiB"
    steps = job.gradient_accumulation_steps
    accumulation = "1 micro-batch" if steps == 1 else f"{steps} micro-batches"
    return [
        job.model_name, job.method, gpu, f"{job.tokens_per_sample} tokens per sample",
        f"batch size {batch}", f"{accumulation} per step", job.stack_name(),
    ]  # fmt: skip


def _draw_bar(axes: Axes, row: int, count: int, held: Estimate, threshold: float) -> None:
    start, room = 0.0, _extent(held) / (_WIDTH - _LEFT - _RIGHT)
    for name, part in parts(held).items():
        label = name if row == 0 else None
        axes.barh(row, part, _BAR / _ROW, left=start, color=COLORS[name], edgecolor="white", linewidth=0.8, label=label)
        begin, end = _beside_line(start, start + part, _usable(held))
        if end - begin > 0.35 * room:  # space that a number needs, in inches
            ink = "white" if is_dark(_rgb(name)) else INK
            axes.text((begin + end) / 2, row, f"{part:.1f}", ha="center", va="center", fontsize=7.5, color=ink)
        start += part
    axes.text(0, row - 0.3, heading(count, held, threshold), ha="left", va="bottom", fontsize=8.5, color=INK)
    axes.vlines(_usable(held), row - 0.27, row + 0.4, color=INK, linewidth=1.6)


def _beside_line(begin: float, end: float, line: float) -> tuple[float, float]:
    """The larger piece of a bar that a line may cross.

    >>> _beside_line(73, 86, 79), _beside_line(30, 73, 79)
    ((79, 86), (30, 73))
    """
    if not begin < line < end:
        return begin, end
    return (begin, line) if line - begin > end - line else (line, end)


def _rgb(name: str) -> tuple[float, ...]:
    from matplotlib.colors import to_rgb

    return to_rgb(COLORS[name])


def _finish(axes: Axes, estimates: dict[int, Estimate]) -> None:
    most = max(map(_extent, estimates.values()))
    usable = _usable(list(estimates.values())[-1])
    axes.text(usable, len(estimates) - 0.58, f"usable {usable:g}", ha="center", va="top", fontsize=8, color=INK)
    axes.set_xlim(0, math.ceil(most * 1.02))
    axes.set_ylim(len(estimates) - 0.25, -0.62)  # the label of the line is below the last bar
    axes.set_yticks(range(len(estimates)), ["1 GPU" if count == 1 else f"{count} GPUs" for count in estimates])
    axes.set_xlabel("GiB of each GPU", fontsize=8.5, color=FAINT, loc="left")
    axes.tick_params(length=0, pad=3, labelsize=8, labelcolor=FAINT)
    for side in axes.spines.values():
        side.set_visible(False)
    columns = len(parts(next(iter(estimates.values()))))
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, fontsize=8, frameon=False, borderpad=0,
        borderaxespad=0.3, handlelength=1.0, handleheight=0.9, columnspacing=1.2, labelcolor=INK,
    )  # fmt: skip
