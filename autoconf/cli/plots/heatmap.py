"""Draw a chart of answers: the minimum number of GPUs over tokens and batch, with one panel per model and method."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from autoconf.cli.plots.answer_grid import MISSING, NO_RECOMMENDATION, Chart, short, step, steps
from autoconf.cli.plots.sheet import FAINT, INK, Sheet, is_dark, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches.
_CELL = 0.36, 0.25
_SMALLEST_PANEL, _LARGEST_PANEL = (1.5, 1.0), (9.0, 7.0)
_BETWEEN_MEMBERS, _BETWEEN_GROUPS, _BETWEEN_ROWS = 0.14, 0.62, 0.86
_LEFT, _RIGHT, _BOTTOM, _TITLE, _LEGEND_ROW, _HEADINGS = 0.85, 0.3, 0.72, 0.85, 0.2, 0.72
_NARROWEST = 6.4
_SUBTITLE_LINE = 0.2

_ASPECT = 1.5  # target of width over height for a picture of many panels
_SMALLEST_NUMBERED_CELL = 0.2  # width; numbers in smaller cells would run into each other
_TICK_EVERY = 0.3  # space that a label needs

_GREY, _HATCH = "#e4e6e9", "#9aa1a9"


@dataclass(frozen=True)
class _Layout:
    """The positions of panels, in inches."""

    panel: tuple[float, float]
    cell: tuple[float, float]
    groups_per_row: int
    rows: int
    members: int

    @property
    def pitch(self) -> tuple[float, float]:
        """The distance from one group to the next, across and down."""
        across = self.members * self.panel[0] + (self.members - 1) * _BETWEEN_MEMBERS + _BETWEEN_GROUPS
        return across, self.panel[1] + _BETWEEN_ROWS

    @property
    def size(self) -> tuple[float, float]:
        """The size of all panels together."""
        return self.groups_per_row * self.pitch[0] - _BETWEEN_GROUPS, self.rows * self.pitch[1] - _BETWEEN_ROWS

    def corner(self, group: int, member: int) -> tuple[float, float]:
        """The upper left corner of a panel, relative to the first panel."""
        row, column = divmod(group, self.groups_per_row)
        return column * self.pitch[0] + member * (self.panel[0] + _BETWEEN_MEMBERS), row * self.pitch[1]


def _layout(chart: Chart) -> _Layout:
    counts = len(chart.tokens), len(chart.batches)
    panel = tuple(
        min(max(count * cell, low), high)
        for count, cell, low, high in zip(counts, _CELL, _SMALLEST_PANEL, _LARGEST_PANEL, strict=True)
    )
    cell = panel[0] / counts[0], panel[1] / counts[1]
    groups = len(chart.groups)
    layouts = [
        _Layout((panel[0], panel[1]), cell, across, math.ceil(groups / across), len(chart.members))
        for across in ([chart.groups_in_row] if chart.groups_in_row else range(1, groups + 1))
    ]
    return min(layouts, key=lambda layout: abs(math.log(layout.size[0] / layout.size[1] / _ASPECT)))


def draw(chart: Chart) -> Figure:
    """Draw a chart; save the result with its ``savefig``.

    Raises:
        AutoConfError: matplotlib does not import.
    """
    layout = _layout(chart)
    width = max(_LEFT + layout.size[0] + _RIGHT, _NARROWEST)
    subtitle = wrapped(chart.subtitle, width - _LEFT - _RIGHT)
    labels = steps(int(total) for panel in chart.panels.values() for total in np.unique(panel) if total > 0)
    entries = len(labels) + sum(_has(chart, value) for value in (NO_RECOMMENDATION, MISSING))
    per_row = max(1, int((width - _LEFT) / 1.3))
    title = _TITLE + _SUBTITLE_LINE * (len(subtitle) - 1)
    top = title + _LEGEND_ROW * math.ceil(entries / per_row) + _HEADINGS
    sheet = Sheet(width, top + layout.size[1] + _BOTTOM)
    colors = _colors(max(labels, default=0))
    sheet.write_title(_LEFT, 0.42, "Minimum number of GPUs")
    for line, words in enumerate(subtitle):
        sheet.write(_LEFT, 0.68 + line * _SUBTITLE_LINE, words, fontsize=9.5)
    sheet.figure.legend(
        handles=_legend_handles(chart, labels, colors), ncols=min(per_row, entries), loc="upper left",
        bbox_to_anchor=sheet.at(_LEFT, title), fontsize=9, labelcolor=INK, frameon=False, borderpad=0, borderaxespad=0,
        handlelength=1.6, handleheight=1.1, columnspacing=1.6,
    )  # fmt: skip
    _draw_groups(sheet, chart, layout, top, colors)
    _name_axes(sheet, chart, layout, top)
    return sheet.figure


def _draw_groups(sheet: Sheet, chart: Chart, layout: _Layout, top: float, colors: list[Any]) -> None:
    for g, group in enumerate(chart.groups):
        x, y = layout.corner(g, 0)
        sheet.write(_LEFT + x, top + y - 0.3, _fitted(group, layout), fontweight="bold", color=INK)
        for k, member in enumerate(chart.members):
            if (group, member) in chart.panels:
                x, y = layout.corner(g, k)
                axes = sheet.axes(_LEFT + x, top + y, *layout.panel)
                axes.set_title(member, fontsize=8.5, color=FAINT, loc="left", pad=4, parse_math=False)
                _draw_panel(axes, chart.panels[group, member], colors, layout.cell)
                _label_axes(axes, chart, layout.cell, batches=k == 0 or (group, chart.members[0]) not in chart.panels)


def _name_axes(sheet: Sheet, chart: Chart, layout: _Layout, top: float) -> None:
    unit = " (k = 1024)" if any(short(tokens) != str(tokens) for tokens in chart.tokens) else ""
    sheet.write(_LEFT, sheet.height - 0.22, f"tokens per sample{unit}", va="bottom")
    for row in range(layout.rows):
        middle = top + row * layout.pitch[1] + layout.panel[1] / 2
        sheet.write(0.3, middle, "batch size", ha="center", va="center", rotation=90)


def _colors(last_step: int) -> list[Any]:
    """A color for each step, darker for more: viridis, which color-blind people can read and gray prints preserve."""
    import matplotlib

    last_step = max(last_step, 3)
    return [matplotlib.colormaps["viridis"](0.98 - 0.88 * s / last_step) for s in range(last_step + 1)]


def _has(chart: Chart, total: int) -> bool:
    return any((panel == total).any() for panel in chart.panels.values())


def _legend_handles(chart: Chart, labels: dict[int, str], colors: list[Any]) -> list[Any]:
    from matplotlib.patches import Patch

    unit = {s: " GPU" if label == "1" else " GPUs" for s, label in labels.items()}
    handles = [Patch(facecolor=colors[s], label=f"{label}{unit[s]}") for s, label in labels.items()]
    if _has(chart, NO_RECOMMENDATION):
        handles.append(Patch(facecolor=_GREY, edgecolor=_HATCH, linewidth=0, hatch="/////", label="no recommendation"))
    if _has(chart, MISSING):
        handles.append(Patch(facecolor="white", edgecolor=_HATCH, linewidth=0.6, label="no answer in the file"))
    return handles


def _draw_panel(axes: Axes, totals: np.ndarray, colors: list[Any], cell: tuple[float, float]) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgba

    rows, columns = totals.shape
    image = np.ones((rows, columns, 4))
    for total in np.unique(totals):
        if total != MISSING:
            image[totals == total] = to_rgba(_GREY) if total == NO_RECOMMENDATION else colors[step(int(total))]
    axes.imshow(image, origin="lower", aspect="auto", interpolation="nearest")
    segments = [line for y, x in np.argwhere(totals == NO_RECOMMENDATION) for line in _hatch(x - 0.5, y - 0.5)]
    axes.add_collection(LineCollection(segments, colors=_HATCH, linewidths=0.6), autolim=False)
    if min(cell) < 0.08:  # lines between such cells would hide them
        return
    asked = np.argwhere(totals != MISSING)
    frames = [_frame(x - 0.5, y - 0.5) for y, x in asked]
    axes.add_collection(LineCollection(frames, colors="white", linewidths=1.0), autolim=False)
    if cell[0] >= _SMALLEST_NUMBERED_CELL:
        for y, x in asked:
            if totals[y, x] != NO_RECOMMENDATION:
                ink = "white" if is_dark(image[y, x]) else INK
                axes.text(x, y, str(totals[y, x]), ha="center", va="center_baseline", fontsize=7.5, color=ink)


def _hatch(x: float, y: float) -> list[list[tuple[float, float]]]:
    """Diagonals of the cell with its lower left corner at (x, y); they continue into the neighboring cells."""
    ends = ((0, 2 / 3, 1 / 3, 1), (0, 1 / 3, 2 / 3, 1), (0, 0, 1, 1), (1 / 3, 0, 1, 2 / 3), (2 / 3, 0, 1, 1 / 3))
    return [[(x + x0, y + y0), (x + x1, y + y1)] for x0, y0, x1, y1 in ends]


def _frame(x: float, y: float) -> list[tuple[float, float]]:
    return [(x, y), (x + 1, y), (x + 1, y + 1), (x, y + 1), (x, y)]


def _label_axes(axes: Axes, chart: Chart, cell: tuple[float, float], *, batches: bool) -> None:
    for axis, values, size, shown in (
        (axes.xaxis, [short(tokens) for tokens in chart.tokens], cell[0], True),
        (axes.yaxis, [str(batch) for batch in chart.batches], cell[1] * 1.5, batches),
    ):
        every = math.ceil(_TICK_EVERY * max(1, max(map(len, values)) / 4) / size)
        ticks = list(range(0, len(values), every))
        axis.set_ticks(ticks, [values[t] for t in ticks] if shown else [""] * len(ticks))
    axes.tick_params(length=0, pad=3, labelsize=7.5, labelcolor=FAINT)
    for side in axes.spines.values():
        side.set_visible(False)


def _fitted(group: str, layout: _Layout) -> str:
    """The name of a group, shortened to the width of its panels."""
    letters = int((layout.pitch[0] - 0.2) / 0.088)
    return group if len(group) <= letters else f"{group[: letters - 1]}…"
