"""A loaded predictor: what it is told of candidates, and whether it says that they fit."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pandas as pd

from autoconf.jobs.job import read
from autoconf.jobs.names import listed
from autoconf.jobs.presets import SETTINGS, training_stack
from autoconf.jobs.stack import Stack
from autoconf.memory.candidates import Candidates
from autoconf.memory.model import StackMemory
from autoconf.memory.units import GIB, Booleans, Floats, Outside
from autoconf.memory.version_1 import MemoryTable
from autoconf.predictor.cards import Card, Domain, Model

_STACK = ("stack", *SETTINGS)
# The predictor's features, each with the direction in which it may move the probability of fitting: of versions that
# say themselves what must stay free, and of those whose predictor learnt all of it.
MONOTONE = {"headroom_gib": 1, "sharded": -1}
MONOTONE_1_1_0 = {"free_gib": 1, "sharded": -1}


class OutsideDomain(ValueError):
    """A version has no figures for a job; the message says what it lacks."""


class Predictor:
    """A loaded version: decides whether candidates fit."""

    def __init__(self, card: Card, memory: MemoryTable | StackMemory, tabular: Any) -> None:
        self.card = card
        self.memory = memory
        self._tabular = tabular
        import threadpoolctl  # sets an environment variable: see _open

        self._openmp = threadpoolctl.ThreadpoolController().select(user_api="openmp")
        self._lock = threading.Lock()

    @property
    def domain(self) -> Domain:
        return self.card.domain

    def about(self, models: dict[str, Model], memory: StackMemory) -> Predictor:
        """The same predictor, asked about other models.

        Args:
            models: in place of the domain's.
            memory: their figures.
        """
        domain = self.domain.model_copy(update={"models": models})
        return Predictor(self.card.model_copy(update={"domain": domain}), memory, self._tabular)

    def row(self, model: str, method: str, stack: Stack) -> int:
        """The row of a job's figures.

        Args:
            model: one of the domain's models.
            method: one of the domain's methods.
            stack: the training stack.

        Raises:
            OutsideDomain: the version has none.
        """
        found = self.memory.row(model, method, stack)
        if isinstance(found, Outside):
            are = "are" if len(found.asked) > 1 else "is"
            sentence = f"{listed(found.asked)} {are} not in the domain of version {self.card.version}{found.why}"
            raise OutsideDomain(sentence)
        return found

    def probabilities(self, table: pd.DataFrame) -> Floats:
        """Predicted probability of fitting for a table of ``features``, shape (rows,)."""
        if table.empty:
            return np.zeros(0)
        # Neither AutoGluon nor LightGBM promises that prediction is thread-safe. One OpenMP thread: on a busy machine a
        # second one costs 20 ms of waiting for what takes a tenth of one.
        with self._lock, self._openmp.limit(limits=1):
            return self._tabular.predict_proba(table, as_pandas=False, as_multiclass=False)

    def answers(self, table: pd.DataFrame) -> Booleans:
        """Whether the predictor says "fits" for a table of ``features``, shape (rows,)."""
        return self.probabilities(table) >= self.card.threshold

    def fits(self, candidates: Candidates) -> Booleans:
        """Whether the predictor says that candidates fit, shape (candidates,)."""
        return self.answers(self.features(candidates))

    def features(self, candidates: Candidates) -> pd.DataFrame:
        """What the predictor is asked about candidates: the columns of ``MONOTONE``, or of ``MONOTONE_1_1_0``."""
        sharded = (candidates.gpus > 1).astype(float)
        place = candidates.rows, candidates.gpus, candidates.tokens_per_gpu
        if isinstance(candidates.memory, StackMemory):
            assert self.card.reserve is not None
            headroom = candidates.usable_gib - candidates.memory.needed_gib(*place, self.card.reserve)
            return pd.DataFrame({"headroom_gib": headroom, "sharded": sharded})
        free = candidates.usable_gib - candidates.memory.peak_bytes(*place) / GIB
        return pd.DataFrame({"free_gib": free, "sharded": sharded})

    def candidates(self, runs: pd.DataFrame) -> Candidates:
        """Candidates of a table of runs inside the domain: each line one job on ``number_gpus`` GPUs.

        Raises:
            ValueError: a job is outside the domain.
        """
        rows = self._rows(runs)
        outside = next((row for row in rows if isinstance(row, str)), None)
        if outside is not None:
            raise ValueError(outside)
        gpus = runs["number_gpus"].to_numpy(np.int64)
        tokens = runs["batch_size"].to_numpy(float) / gpus * runs["tokens_per_sample"].to_numpy(float)
        usable = runs["gpu_model"].map({name: gpu.usable_gib for name, gpu in self.domain.gpus.items()}).to_numpy(float)
        return Candidates(self.memory, np.array(rows, np.int64), gpus, tokens, usable)

    def problems(self, runs: pd.DataFrame) -> list[str]:
        """Why the version has no figures for each of some runs; empty text where it has."""
        return [row if isinstance(row, str) else "" for row in self._rows(runs)]

    def _rows(self, runs: pd.DataFrame) -> list[int | str]:
        accumulating = runs["gradient_accumulation_steps"] > 1
        columns = [runs[name] if name in runs else [None] * len(runs) for name in _STACK]
        keys = list(zip(runs["model_name"], runs["method"], accumulating, *columns, strict=True))
        found = {key: self._row(*key) for key in dict.fromkeys(keys)}
        return [found[key] for key in keys]

    def _row(self, model: str, method: str, accumulating: bool, *stack: Any) -> int | str:
        try:
            settings = [read(name, value) for name, value in zip(_STACK, stack, strict=True)]
            return self.row(model, method, training_stack(method, accumulating, *settings))
        except ValueError as error:  # settings that exclude each other
            return str(error)
