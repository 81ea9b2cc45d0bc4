"""What every drawing of an explanation shows: the parts of the memory of each GPU, headings, and changes."""

from __future__ import annotations

from autoconf.planner.estimate import probability_text
from autoconf.planner.explanation import Explanation
from autoconf.planner.results import Estimate
from autoconf.planner.rules import on_each

# Colors of Okabe and Ito, which color-blind people can distinguish.
COLORS = {
    "weights": "#0072B2",
    "gradients": "#E69F00",
    "optimizer": "#009E73",
    "gathered": "#56B4E9",
    "activations": "#CC79A7",
    "fragmentation": "#D55E00",
    "reserve": "#999999",
}


def parts(held: Estimate) -> dict[str, float]:
    """The parts of the memory that a GPU needs, in GiB."""
    found = {name: getattr(held, f"{name}_gib") for name in COLORS}
    return {name: gib for name, gib in found.items() if gib is not None}


def drawn(explanation: Explanation) -> dict[int, Estimate]:
    """The estimates to draw, by total number of GPUs."""
    return {count: held for count, held in explanation.at.items() if held.fits is not None}


def heading(count: int, held: Estimate, threshold: float) -> str:
    """The heading above the bars of an estimate.

    >>> print(heading(2, Estimate(fits=1, probability=0.97, needed_memory_gib=72.76, usable_memory_gib=79.1), 0.9))
    on each of 2 GPUs: needs 72.8 GiB of 79.1, fits (probability 0.97, 0.90 required)
    """
    verdict = "fits" if held.fits else "does not fit"
    needs = f"needs {held.needed_memory_gib:.1f} GiB of {held.usable_memory_gib:g}"
    return f"{on_each(count)}: {needs}, {verdict} ({probability_text(held.probability or 0.0, threshold)})"


def what_would_help(explanation: Explanation) -> list[str]:
    """The changes as lines below a heading; empty for a job that needs one GPU or is outside the domain."""
    recommended = explanation.recommendation.can_recommend
    would = "lead to fewer GPUs" if recommended else "would get a recommendation"
    if any(change.also for change in explanation.changes):
        heading = (
            f"No single change {would.replace('lead', 'leads')}, but these pairs of changes would, cheapest first:"
        )
        return [heading, *(f"  {change}" for change in explanation.changes)]
    if explanation.changes:
        return [f"Single changes that {would}, cheapest first:", *(f"  {change}" for change in explanation.changes)]
    asked = bool(explanation.at) and not (recommended and max(explanation.at) == 1)
    return [f"None of the single changes tried {would.replace('lead', 'leads')}."] if asked else []
