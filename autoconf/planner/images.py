"""Images in the samples of a job: what its rows in the memory model depend on, and jobs that cannot have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autoconf.jobs.job import IMAGES, OPTIONAL
from autoconf.jobs.stack import Stack
from autoconf.planner.results import Problem
from autoconf.predictor.cards import Domain

_NONE = (0.0, 1)
Images = tuple[float, int]  # image tokens of each token, and micro-batches of an optimizer step
_ACCUMULATION = "gradient_accumulation_steps"


def images_of(
    columns: Mapping[str, Sequence[Any]], models: Sequence[str], domain: Domain, problems: dict[int, Problem]
) -> list[Images]:
    """The images of each job; record a problem for jobs whose model cannot have them, or needs them.

    Args:
        columns: valid jobs.
        models: the model of each job, as the domain names it.
        domain: the domain of a version.
        problems: the problems of jobs, by position.
    """
    count, known = len(models), domain.vision_language
    given = columns.get(IMAGES, [None] * count)
    if not any(given) and known.keys().isdisjoint(models):
        return [_NONE] * count
    steps = columns.get(_ACCUMULATION, [OPTIONAL[_ACCUMULATION]] * count)
    found = []
    for index, (model, images, tokens) in enumerate(zip(models, given, columns["tokens_per_sample"], strict=True)):
        if reason := _problem(model, images, tokens, model in known):
            problems.setdefault(index, Problem("outside_domain", reason))
        found.append((images / tokens, steps[index]) if images and index not in problems else _NONE)
    return found


def _problem(model: str, images: int | None, tokens: int, has_tower: bool) -> str:
    """The reason why a job cannot have so many image tokens; empty text if it can."""
    if has_tower and images is None:
        return f"{model} has a vision tower: give {IMAGES}, the tokens of each sample that are images"
    if images is not None and not has_tower:
        return f"{IMAGES} {images} is given, but {model or 'this model'} is counted without a vision tower"
    if images is not None and images > tokens:
        return f"{IMAGES} {images} is more than tokens_per_sample {tokens}, which includes images"
    return ""


def with_images(stack: Stack, images: Images) -> Stack:
    """The stack of a job with images."""
    if images == _NONE:
        return stack
    return stack.model_copy(update=dict(zip(("image_share", "micro_batches"), images, strict=True)))
