"""Write notes on answers: how a name was resolved, and settings that the GPU type cannot run."""

from __future__ import annotations

from collections.abc import Container
from functools import lru_cache
from typing import Any

from autoconf.jobs.job import STACK_FIELDS, stack_of
from autoconf.planner import hardware
from autoconf.planner.domain import JobColumns, column
from autoconf.planner.known_names import names_of
from autoconf.predictor.predictor import Predictor

Notes = tuple[str, ...]


def notes_on(predictor: Predictor, columns: JobColumns) -> list[Notes]:
    """The notes on the answers of one version for valid jobs; without ``gpu_model`` there are none about GPUs."""
    return _writer(predictor)(columns)


class _Writer:
    """Writes the notes of one version, once for equal jobs."""

    def __init__(self, predictor: Predictor) -> None:
        self.domain = predictor.domain
        self.names = names_of(self.domain)
        self.own: dict[str, Container[str]] = {
            "model_name": self.names["model_name"].exact,
            "method": self.names["method"].exact,
            "gpu_model": self.domain.gpus,
        }
        self.too_old = {name for name, gpu in self.domain.gpus.items() if hardware.is_too_old(name, gpu)}
        self.warning = lru_cache(maxsize=4096)(self._warning)  # a table has few stacks

    def __call__(self, columns: JobColumns) -> list[Notes]:
        fields = [field for field in self.names if field in columns]
        # A name in the domain's own spelling needs no note.
        notes = [
            {name: "" if name in self.own[field] else self.names[field].note(name) for name in set(columns[field])}
            for field in fields
        ]
        gpus = self.names["gpu_model"]
        old = {
            name
            for name in set(columns.get("gpu_model", ()))
            if (name if name in self.domain.gpus else gpus.find(name)) in self.too_old
        }
        if not old and not any(any(of_field.values()) for of_field in notes):
            return [()] * len(columns["model_name"])
        named = (
            tuple(note for of_field, name in zip(notes, names, strict=True) if (note := of_field[name]))
            for names in zip(*(columns[field] for field in fields), strict=True)
        )
        return [found + self._warnings(columns, index, old) for index, found in enumerate(named)]

    def _warnings(self, columns: JobColumns, index: int, old: set[str]) -> Notes:
        if not old or (name := columns["gpu_model"][index]) not in old:
            return ()
        return (self.warning(name, *(column(columns, field)[index] for field in STACK_FIELDS)),)

    def _warning(self, name: str, *stack: Any) -> str:
        gpu = str(self.names["gpu_model"].find(name))
        return hardware.warning(gpu, self.domain.gpus[gpu], stack_of(dict(zip(STACK_FIELDS, stack, strict=True))))


@lru_cache(maxsize=8)
def _writer(predictor: Predictor) -> _Writer:
    return _Writer(predictor)
