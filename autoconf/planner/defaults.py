"""Find the defaults that decide an answer: fields that a job does not set and whose other values change the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from autoconf.jobs.job import OPTIONAL, STACK_FIELDS, stack_of
from autoconf.jobs.presets import UP_TO_2_0_0
from autoconf.planner.domain import JobColumns
from autoconf.predictor.predictor import Predictor

# The fields whose defaults matter most. A job that sets all of them needs no notes on defaults.
DECIDING = frozenset({"gradient_accumulation_steps", "stack", "optim"})
_EIGHT_BITS = "adamw_bnb_8bit"  # the alternative optimizer


def decisive_defaults(
    predictor: Predictor, columns: JobColumns, solve: Callable[[Predictor, JobColumns], Sequence[Any]], answer: Any
) -> tuple[str, ...]:
    """List a note on each default that the job does not set and that decides the answer.

    Args:
        predictor: a version.
        columns: one valid job; fields that are not set are absent.
        solve: the function that answers jobs.
        answer: the answer about that job.
    """
    fields = {field: values[0] for field, values in columns.items()}
    others = [(field, default, other) for field, default, other in _others(fields) if _possible(fields, field, other)]
    if answer.outcome == "outside_domain" or not others:
        return ()
    rows = [{**fields, field: other} for field, _, other in others]
    names = dict.fromkeys(name for row in rows for name in row)
    answers = solve(predictor, {name: [row.get(name, OPTIONAL.get(name)) for row in rows] for name in names})
    found: dict[tuple[str, Any], list[str]] = {}
    for (field, default, other), changed in zip(others, answers, strict=True):
        if changed.outcome != "outside_domain" and _headline(changed) != _headline(answer):
            found.setdefault((field, default), []).append(f"with {other} {_headline(changed)}")
    return tuple(
        f"{field} was not given, {default} is the default, and it decides: {', '.join(changes)}"
        for (field, default), changes in found.items()
    )


def _others(fields: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Fields that the job does not set, each with its default and another value."""
    found: list[tuple[str, Any, Any]] = []
    if "gradient_accumulation_steps" not in fields:
        found.append(("gradient_accumulation_steps", OPTIONAL["gradient_accumulation_steps"], 1))
    if "stack" not in fields:
        default = OPTIONAL["stack"]
        found += [("stack", default, name) for name in UP_TO_2_0_0 if name != default]
    if "optim" not in fields:
        found.append(("optim", stack_of(fields).optim, _EIGHT_BITS))
    return found


def _possible(fields: dict[str, Any], field: str, value: Any) -> bool:
    try:
        stack_of({name: value for name, value in {**fields, field: value}.items() if name in STACK_FIELDS})
    except ValueError:  # another setting excludes it
        return False
    return True


def _headline(answer: Any) -> str:
    """The main result of an answer, as the end of a sentence."""
    if hasattr(answer, "fits"):
        return "it fits" if answer.fits else "it does not fit"
    if not answer.can_recommend:
        return "nothing fits"
    if not hasattr(answer, "gpus"):
        return "it fits"
    total = answer.gpus * answer.workers
    gpus = f"{answer.gpus} {'GPU' if answer.gpus == 1 else 'GPUs'}"
    layout = gpus if total == answer.gpus else f"{answer.workers} workers of {gpus}"
    return f"it takes {layout}" + (f" of {answer.gpu_model}" if hasattr(answer, "gpu_model") else "")
