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
        free = candidates.memory.free_gib(*place, candidates.usable_gib)
        return pd.DataFrame({"free_gib": free, "sharded": sharded})
