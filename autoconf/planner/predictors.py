"""The predictor that answers a job: that of its version, also for a model that is traced from its config."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from autoconf.errors import BadInput
from autoconf.planner.domain import model_names, outside
from autoconf.planner.results import Problem
from autoconf.predictor.predictor import Predictor
from autoconf.predictor.traced_models import traced_model


class Answering(NamedTuple):
    """The predictor for some of the jobs of one version.

    Attributes:
        predictor: the predictor.
        note: a note on each answer; empty text if there is none.
        positions: the positions of the jobs.
        problem: the reason why the model cannot be traced, if it cannot.
    """

    predictor: Predictor
    note: str
    positions: list[int]
    problem: Problem | None = None


def answering(predictor: Predictor, models: Sequence[str], positions: Sequence[int]) -> Iterator[Answering]:
    """Group the jobs of one version by the predictor that answers them.

    Args:
        predictor: the predictor of the version.
        models: the model of each job.
        positions: the position of each job.
    """
    names = model_names(predictor)
    found = {} if predictor.card.reserve is None else {name: names.unmatched_config(name) for name in {*models}}
    traced = {name: file for name, file in found.items() if file is not None}
    usual = [at for name, at in zip(models, positions, strict=True) if name not in traced]
    if usual:
        yield Answering(predictor, "", usual)
    for name, file in traced.items():
        those = [at for other, at in zip(models, positions, strict=True) if other == name]
        try:
            yield Answering(*traced_model(predictor, name, file), those)
        except BadInput as error:
            yield Answering(predictor, "", those, outside(f"model_name {name!r}: {error}"))
