"""Answers as HTML, for notebooks and for the page of the service: the answer first, then the memory of each GPU.

The fragments take the colors of the text and the background around them, so that they suit dark and light pages. All
text of a job is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape

from autoconf.planner.explanation import Explanation
from autoconf.planner.memory_parts import COLORS, drawn, heading, parts, what_would_help
from autoconf.planner.results import Estimate, Recommendation, layout
from autoconf.planner.rules import on_each

_LINE = "border-bottom:1px solid color-mix(in srgb,currentColor 25%,transparent)"


def recommendation_html(found: Recommendation) -> str:
    """A recommendation: the layout, or the reason why there is none.

    >>> print(recommendation_html(Recommendation(1, gpus=2, workers=1, stack="trl")))
    <div class="autoconf"><p><strong>2 GPUs</strong> with the training stack trl</p></div>
    """
    return _block(_answer(found, found.reason), _list(found.notes, "Notes"))


def estimate_html(held: Estimate) -> str:
    """An estimate: whether the job fits, and the memory of each GPU by part."""
    if held.fits is None:
        return _block(_paragraph("No estimate:", held.reason), _list(held.notes, "Notes"))
    verdict = "Fits:" if held.fits else "Does not fit:"
    needs = f"needs {held.needed_memory_gib:.1f} GiB of {held.usable_memory_gib:g}, probability {held.probability:.2f}"
    bars = _bar(f"Each GPU {needs}", held, _extent([held])) + _table({"GiB": held})
    return _block(_paragraph(verdict, f"each GPU {needs}"), bars, _list(held.notes, "Notes"))


def explanation_html(found: Explanation) -> str:
    """An explanation: the answer, the memory on each number of GPUs by part, and the changes that would help."""
    estimates = drawn(found)
    extent = _extent(estimates.values())
    bars = "".join(
        f'<p style="margin:.8em 0 .2em">{escape(heading(count, held, found.threshold or 0.0))}</p>'
        + _bar(_described(on_each(count), held), held, extent)
        for count, held in estimates.items()
    )
    table = _table({f"{on_each(count)}, GiB": held for count, held in estimates.items()}) if estimates else ""
    title, *changes = what_would_help(found) or [""]
    return _block(
        _answer(found.recommendation, found.why),
        bars + table,
        _list(changes, title.rstrip(":")) if changes else _plain(title),
        _list(found.recommendation.notes, "Notes"),
    )


def _answer(found: Recommendation, reason: str) -> str:
    if found.gpus is None or found.workers is None:
        return _paragraph("No recommendation:", reason)
    return _paragraph(
        layout(found.gpus, found.workers), f"with the training stack {found.stack}" if found.stack else ""
    )


def _block(*content: str) -> str:
    return f'<div class="autoconf">{"".join(content)}</div>'


def _plain(text: str) -> str:
    return f"<p>{escape(text)}</p>" if text else ""


def _paragraph(strong: str, text: str) -> str:
    return f"<p><strong>{escape(strong)}</strong>{f' {escape(text)}' if text else ''}</p>"


def _list(lines: Iterable[str], title: str) -> str:
    items = "".join(f"<li>{escape(line.strip())}</li>" for line in lines)
    return f"<p>{escape(title)}</p><ul>{items}</ul>" if items else ""


def _extent(estimates: Iterable[Estimate]) -> float:
    """The GiB that the longest bar extends to."""
    return max((max(one.needed_memory_gib or 0.0, one.usable_memory_gib or 0.0) for one in estimates), default=1.0)


def _described(place: str, held: Estimate) -> str:
    shown = ", ".join(f"{name} {gib:.1f}" for name, gib in parts(held).items())
    return f"{place}: {shown} GiB; usable {held.usable_memory_gib:g} GiB"


def _bar(label: str, held: Estimate, extent: float) -> str:
    """The parts next to each other, crossed by a line at the usable memory."""
    pieces = "".join(
        f'<span style="width:{100 * gib / extent:.3f}%;background:{COLORS[name]}" title="{name} {gib:.1f} GiB"></span>'
        for name, gib in parts(held).items()
        if gib
    )
    usable = 100 * (held.usable_memory_gib or 0.0) / extent
    line = (
        f'<span style="position:absolute;left:calc({usable:.3f}% - 2px);top:-4px;bottom:-4px;width:2px;'
        'background:currentColor"></span>'
    )
    return (
        f'<div role="img" aria-label="{escape(label)}" style="position:relative;display:flex;height:1.4em;'
        f'max-width:44em">{pieces}{line}</div>'
    )


def _table(columns: Mapping[str, Estimate]) -> str:
    """The figures of the bars; the color next to the name of each part is its legend."""
    cell = f'style="text-align:right;padding:.15em .8em;{_LINE}"'
    first = f'style="text-align:left;padding:.15em .8em .15em 0;{_LINE}"'
    head = "".join(f'<th scope="col" {cell}>{escape(title)}</th>' for title in columns)
    rows = []
    for name in parts(next(iter(columns.values()))):
        swatch = f'<span style="display:inline-block;width:.8em;height:.8em;background:{COLORS[name]}"></span>'
        figures = "".join(f"<td {cell}>{parts(held)[name]:.1f}</td>" for held in columns.values())
        rows.append(f'<tr><th scope="row" {first}>{swatch} {name}</th>{figures}</tr>')
    for title, field in (("needed", "needed_memory_gib"), ("usable", "usable_memory_gib")):
        figures = "".join(f"<td {cell}>{getattr(held, field):.1f}</td>" for held in columns.values())
        rows.append(f'<tr><th scope="row" {first}>{title}</th>{figures}</tr>')
    return (
        '<table style="border-collapse:collapse;margin-top:.8em">'
        f'<thead><tr><th scope="col" {first}>Memory of each GPU</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )
