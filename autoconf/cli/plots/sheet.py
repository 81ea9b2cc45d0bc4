"""A white figure with positions in inches from its upper left corner.

Cells and bars have a fixed size at which their labels are legible, so the size of a picture depends on its content.
matplotlib's layout engines fill a given size instead, and place a legend outside of the panels on top of the title.

matplotlib is imported only to draw, and never through pyplot, so that no setting of the host process changes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from autoconf.cli.plots.answer_grid import SEPARATOR
from autoconf.errors import AutoConfError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT = "#1f2328", "#59636e"
_DPI, _MOST_PIXELS = 160, 80e6
_LETTER = 0.075  # inches, of a setting


class Sheet:
    """A figure of some size.

    Raises:
        AutoConfError: matplotlib does not import.
    """

    def __init__(self, width: float, height: float) -> None:
        try:
            import matplotlib.backends.backend_agg  # noqa: F401 - what savefig needs must not fail late
            from matplotlib.figure import Figure
        except Exception as error:  # a broken library can raise any exception at import
            raise AutoConfError(f"matplotlib does not import: {type(error).__name__}: {error}") from error
        self.width, self.height = width, height
        dpi = min(_DPI, math.sqrt(_MOST_PIXELS / width / height))
        self.figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white")

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Convert a point to fractions of the figure from its lower left corner, as matplotlib needs."""
        return x / self.width, 1 - y / self.height

    def write(self, x: float, y: float, words: str, **style: Any) -> None:
        """Write text that starts at a point on its baseline, unless the style overrides this."""
        style = {"color": FAINT, "fontsize": 9, "ha": "left", "va": "baseline", **style}
        # A name may have a dollar sign, which must not start a formula.
        self.figure.text(*self.at(x, y), words, parse_math=False, **style)

    def write_title(self, x: float, y: float, words: str) -> None:
        """Write the title of the picture."""
        self.write(x, y, words, fontsize=15, fontweight="bold", color=INK)

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Add axes with their upper left corner at a point."""
        left, bottom = self.at(x, y + height)
        return self.figure.add_axes((left, bottom, width / self.width, height / self.height))


def wrapped(subtitle: str, width: float) -> list[str]:
    """Wrap the settings into lines of a width in inches, without breaking within a setting."""
    lines: list[str] = []
    for setting in subtitle.split(SEPARATOR):
        longer = SEPARATOR.join([*lines[-1:], setting])
        if lines and len(longer) * _LETTER <= width:
            lines[-1] = longer
        else:
            lines.append(setting)
    return lines


def is_dark(color: Any) -> bool:
    """Whether white has more contrast with a color than the ink color (relative luminance of WCAG 2)."""
    return float(np.dot(np.power(color[:3], 2.2), (0.2126, 0.7152, 0.0722))) < 0.21
