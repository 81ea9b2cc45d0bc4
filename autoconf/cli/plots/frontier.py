"""Draw a plan: cost over hours of the layouts on the frontier."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from autoconf.cli.plots.answer_grid import SEPARATOR
from autoconf.cli.plots.sheet import FAINT, INK, Sheet, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOR = "#0072B2"  # of Okabe and Ito, as for memory
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _BOTTOM, _LINE = 8.0, 4.9, 0.8, 0.4, 0.7, 0.19  # inches
_ROOM = 1.25  # of the axes beyond the last point, for its label


def picture(plans: pd.DataFrame, settings: list[str]) -> Figure:
    """Draw the plan of one job; save the result with its ``savefig``.

    Args:
        plans: the rows of ``autoconf.plan`` that have a layout.
        settings: the job in a few words.

    Raises:
        AutoConfError: matplotlib does not import.
    """
    across = _WIDTH - _LEFT - _RIGHT
    lines = wrapped(SEPARATOR.join(settings), across)
    top = 0.95 + _LINE * len(lines)
    sheet = Sheet(_WIDTH, _HEIGHT + _LINE * len(lines))
    sheet.write_title(_LEFT, 0.42, title(plans))
    for line, words in enumerate(lines):
        sheet.write(_LEFT, 0.68 + _LINE * line, words)
    axes = sheet.axes(_LEFT, top, across, sheet.height - top - _BOTTOM)
    axes.plot(plans["hours"], plans["cost"], color=_COLOR, marker="o", linewidth=1, drawstyle="steps-post")
    for row in plans.itertuples():
        axes.annotate(
            f"{row.gpus * row.workers} x {row.gpu_model}", (row.hours, row.cost), xytext=(5, 4),
            textcoords="offset points", fontsize=7.5, color=INK, parse_math=False,
        )  # fmt: skip
    axes.set_xlim(0, plans["hours"].max() * _ROOM)
    axes.set_ylim(0, plans["cost"].max() * _ROOM)
    axes.set_xlabel("hours of the run", color=FAINT)
    axes.set_ylabel("cost of the run", color=FAINT)
    axes.spines[["top", "right"]].set_visible(False)
    return sheet.figure


def title(plans: pd.DataFrame) -> str:
    """The range of a plan in one line.

    >>> title(pd.DataFrame({"hours": [9.0, 3.0], "cost": [5.0, 7.0]}))
    'From 9.0 hours at a cost of 5.00 to 3.0 hours at 7.00'
    """
    cheapest, fastest = plans.iloc[0], plans.iloc[-1]
    start = f"{cheapest['hours']:.1f} hours at a cost of {cheapest['cost']:.2f}"
    return f"From {start} to {fastest['hours']:.1f} hours at {fastest['cost']:.2f}" if len(plans) > 1 else start
