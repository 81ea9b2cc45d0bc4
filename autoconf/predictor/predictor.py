"""A loaded predictor: the features of candidates, and whether they fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from autoconf.errors import AutoConfError
from autoconf.jobs.stack import Stack
from autoconf.memory.candidates import Candidates
from autoconf.memory.model import StackMemory
from autoconf.memory.units import Booleans, Floats
from autoconf.memory.version_1 import MemoryTable
from autoconf.predictor.autogluon import installed_libraries
from autoconf.predictor.cards import Card, Domain, Model
from autoconf.predictor.locks import PREDICTING

# The features of versions since 2.0.0, each with the direction in which it may move the probability of fitting.
# ``headroom_gib`` is usable memory less the peak and its safety margin; ``sharded`` is 1 on several GPUs.
MONOTONE = {"headroom_gib": 1, "sharded": -1}


class Predictor:
    """A loaded version: decides whether candidates fit.

    Args:
        card: the version's card.
        memory: peak memory of its jobs.
        tabular: AutoGluon's predictor; ``None`` for a version that only computes features.
    """

    def __init__(self, card: Card, memory: MemoryTable | StackMemory, tabular: Any) -> None:
        self.card = card
        self.memory = memory
        self._tabular = tabular
        import threadpoolctl  # sets an environment variable, which the registry takes back

        self._openmp = threadpoolctl.ThreadpoolController().select(user_api="openmp")

    @property
    def domain(self) -> Domain:
        """The jobs that the version answers."""
        return self.card.domain

    def about(self, models: dict[str, Model], memory: StackMemory) -> Predictor:
        """The same predictor for other models.

        Args:
            models: they replace the domain's.
            memory: their peak memory.
        """
        domain = self.domain.model_copy(update={"models": models})
        return Predictor(self.card.model_copy(update={"domain": domain}), memory, self._tabular)

    def row(self, model: str, method: str, stack: Stack) -> int:
        """The row of a job in ``memory``.

        Args:
            model: one of the domain's models.
            method: one of the domain's methods.
            stack: how the job trains.

        Raises:
            Unsupported: the version has no memory profile for it.
        """
        return self.memory.row(model, method, stack)

    def probabilities(self, table: pd.DataFrame) -> Floats:
        """Predicted probability of fitting for a table of ``features``, shape (rows,).

        Raises:
            AutoConfError: AutoGluon or LightGBM fails.
        """
        if table.empty:
            return np.zeros(0)
        # Neither AutoGluon nor LightGBM promises that prediction is thread-safe. One OpenMP thread: on a busy machine a
        # second one costs 20 ms of waiting for what takes a tenth of one.
        try:
            with PREDICTING, self._openmp.limit(limits=1):
                found = self._tabular.predict_proba(table, as_pandas=False, as_multiclass=False)
        except Exception as error:  # libraries that do not go together can fail at the first prediction, with anything
            raise AutoConfError(
                f"version {self.card.version}: the predictor does not answer: {type(error).__name__}: {error}; "
                f"installed libraries: {installed_libraries()}"
            ) from error
        return np.asarray(found, np.float64)

    def answers(self, table: pd.DataFrame) -> Booleans:
        """Whether a table of ``features`` is predicted to fit, shape (rows,)."""
        return self.possible(table) & (self.probabilities(table) >= self.card.threshold)

    def possible(self, table: pd.DataFrame) -> Booleans:
        """Whether a table of ``features`` has the least headroom without which nothing fits, shape (rows,)."""
        least = self.card.least_headroom_gib
        enough: Booleans = np.ones(len(table), bool) if least is None else table["headroom_gib"].to_numpy() >= least
        return enough

    def fits(self, candidates: Candidates) -> Booleans:
        """Whether candidates are predicted to fit, shape (candidates,)."""
        return self.answers(self.features(candidates))

    def features(self, candidates: Candidates) -> pd.DataFrame:
        """The features of candidates: the columns of ``MONOTONE``, or of ``version_1.MONOTONE``."""
        sharded = (candidates.gpus > 1).astype(float)
        place = candidates.rows, candidates.gpus, candidates.tokens_per_gpu
        if isinstance(candidates.memory, StackMemory):
            assert self.card.reserve is not None
            headroom = candidates.usable_gib - candidates.memory.needed_gib(*place, self.card.reserve)
            return pd.DataFrame({"headroom_gib": headroom, "sharded": sharded})
        free = candidates.memory.free_gib(*place, candidates.usable_gib)
        return pd.DataFrame({"free_gib": free, "sharded": sharded})
