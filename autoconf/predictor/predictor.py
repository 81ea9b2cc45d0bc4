"""A loaded predictor version, which computes features and predicts whether candidates fit."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from autoconf.errors import AutoConfError
from autoconf.jobs.lora_layers import ALL, as_text
from autoconf.jobs.names import listed
from autoconf.jobs.stack import Stack
from autoconf.memory import version_1
from autoconf.memory.candidates import Candidates
from autoconf.memory.model import StackMemory
from autoconf.memory.profile_of_job import named_modules
from autoconf.memory.store import ModelsTable
from autoconf.memory.units import GIB, Booleans, Floats, Integers, Unsupported
from autoconf.memory.version_1 import MemoryTable
from autoconf.predictor.autogluon import installed_libraries
from autoconf.predictor.cards import Card, Domain, Model
from autoconf.predictor.locks import PREDICTING

# The features of versions since 2.0.0, each with the direction in which it may move the probability of fitting.
# ``headroom_gib`` is usable memory less what is outside PyTorch, the peak and its safety margin; ``sharded`` is 1 on
# several GPUs.
MONOTONE = {"headroom_gib": 1, "sharded": -1}
# A table of features this long is not predicted row by row, but compared with the step between "does not fit" and
# "fits", which is searched for between these values of headroom, with this many of them in each round.
_LONG = 1_000
_STEP_GIB, _POINTS, _ROUNDS = 16.0, 128, 5
_REMEMBERED = 20_000  # predictions, about 4 MB


def memory_of(card: Card, table: ModelsTable) -> StackMemory:
    """The memory of the models of a table, by a version's rules."""
    return StackMemory(table, card.rules, card.fragmentation, card.outside_pytorch)


class Step(NamedTuple):
    """The step of a predictor's answers in headroom (in free memory for version 1.1.0), which they are monotone in.

    Attributes:
        below: nothing fits with this headroom or less, in GiB; minus infinity if that is not known.
        above: everything fits with this headroom or more; infinity if that is not known.
    """

    below: float
    above: float


class Predictor:
    """A loaded version that predicts whether candidates fit.

    Args:
        card: the version's card.
        memory: memory model of its jobs.
        tabular: AutoGluon predictor; ``None`` if only features are computed.
    """

    def __init__(self, card: Card, memory: MemoryTable | StackMemory, tabular: Any) -> None:
        self.card = card
        self.memory = memory
        # Whether the version says what a job takes on the host; since 3.0.0, as for the memory outside of PyTorch.
        self.knows_host = card.outside_pytorch is not None
        self._tabular = tabular
        import threadpoolctl  # sets an environment variable, which the registry removes again

        self._steps: dict[bool, Step] = {}
        self._known: dict[tuple[float, ...], float] = {}  # probabilities by features: an explanation asks repeatedly
        self._openmp = threadpoolctl.ThreadpoolController().select(user_api="openmp")

    @property
    def domain(self) -> Domain:
        """The jobs that the version supports."""
        return self.card.domain

    def about(self, models: dict[str, Model], memory: StackMemory) -> Predictor:
        """The same predictor for other models.

        Args:
            models: the models of the new domain.
            memory: memory model of these models.
        """
        domain = self.domain.model_copy(update={"models": models})
        return Predictor(self.card.model_copy(update={"domain": domain}), memory, self._tabular)

    def released(self) -> Predictor:
        """The same predictor without what a user's runs say about the speed of their cluster."""
        return Predictor(self.card.model_copy(update={"cluster_speed": None}), self.memory, self._tabular)

    def row(self, model: str, method: str, stack: Stack) -> int:
        """The row of a job in ``memory``.

        Args:
            model: one of the domain's models.
            method: one of the domain's methods.
            stack: the training stack.

        Raises:
            Unsupported: the version does not support the stack.
        """
        if isinstance(self.memory, StackMemory):
            asked = [(setting, getattr(stack, setting), known) for setting, known in self.domain.settings.items()]
            if not self.knows_host:
                asked.append(("sharding", stack.fsdp_strategy, ["full_shard"]))
                asked.append(("lora_layers", as_text(stack.lora_layers), [ALL]))
            for setting, value, known in asked:
                if value not in known:
                    raise Unsupported(
                        [f"{setting} {value!r}"],
                        f", which has {listed(map(str, known))}; it is known from version 3.0.0",
                    )
            self._check_targets(model, method, stack)
        with PREDICTING:  # pyarrow reads profiles when they are first needed, and holds locks of its own meanwhile
            return self.memory.row(model, method, stack)

    def bounded_by(self, model: str, method: str, stack: Stack) -> str:
        """The group of modules as of which layers hold activations, if it is larger than the job's list of modules.

        Raises:
            Unsupported: the model does not have these modules.
        """
        if not isinstance(self.memory, StackMemory):
            return ""
        named = named_modules(self.memory.table, model, method, stack)
        return "" if named is None or named.is_group else named.group

    def experts_gib(self, model: str) -> float:
        """The experts of a model in 16 bits, which transformers 5 holds in tensors that nothing quantizes; else 0."""
        full = self.memory.table.trainable(model, "full", "default") if isinstance(self.memory, StackMemory) else None
        return 2 * sum(shape.elements * layers for shape, layers in full.experts) / GIB if full is not None else 0.0

    def _check_targets(self, model: str, method: str, stack: Stack) -> None:
        """Raise ``Unsupported`` for a list of modules other than a group, in versions up to 2.0.0."""
        if self.bounded_by(model, method, stack) and not self.knows_host:
            raise Unsupported(
                [f"lora_targets {','.join(stack.lora_targets)!r}"],
                ", which has default, attention and all-linear; it is known from version 3.0.0",
            )

    def probabilities(self, table: pd.DataFrame) -> Floats:
        """Predicted probability of fitting for a table of ``features``, shape (rows,).

        Raises:
            AutoConfError: AutoGluon or LightGBM fails.
        """
        rows = [*map(tuple, table.to_numpy(np.float64).tolist())]
        known = self._known
        if unknown := [*dict.fromkeys(row for row in rows if row not in known)]:
            predicted = self._predicted(pd.DataFrame(unknown, columns=table.columns))
            known.update(zip(unknown, predicted.tolist(), strict=True))
            if len(known) > _REMEMBERED:
                self._known = {}
        return np.array([known[row] for row in rows], np.float64)

    def _predicted(self, table: pd.DataFrame) -> Floats:
        # Neither AutoGluon nor LightGBM promises that prediction is thread-safe. The work takes 0.1 ms on one OpenMP
        # thread; on a busy machine, waiting for a second thread costs 20 ms.
        try:
            with PREDICTING, self._openmp.limit(limits=1):
                found = self._tabular.predict_proba(table, as_pandas=False, as_multiclass=False)
        except Exception as error:  # incompatible libraries can raise any exception at the first prediction
            raise AutoConfError(
                f"version {self.card.version}: the predictor does not answer: {type(error).__name__}: {error}; "
                f"installed libraries: {installed_libraries()}"
            ) from error
        return np.asarray(found, np.float64)

    def answers(self, table: pd.DataFrame) -> Booleans:
        """Whether each row of a table of ``features`` is predicted to fit, shape (rows,)."""
        return self.possible(table) & (self.probabilities(table) >= self.card.threshold)

    def possible(self, table: pd.DataFrame) -> Booleans:
        """Whether each row of a table of ``features`` has the minimum headroom, shape (rows,)."""
        least = self.card.least_headroom_gib
        enough: Booleans = np.ones(len(table), bool) if least is None else table["headroom_gib"].to_numpy() >= least
        return enough

    def fits(self, candidates: Candidates) -> Booleans:
        """Whether each candidate is predicted to fit, shape (candidates,)."""
        table = self.features(candidates)
        if len(table) < _LONG:
            return self.answers(table)
        headroom, several = table.iloc[:, 0].to_numpy(), candidates.gpus > 1
        below, above = (np.where(several, *both) for both in zip(self.step(True), self.step(False), strict=True))
        fits: Booleans = headroom >= above
        near = ~fits & (headroom > below)
        fits[near] = self.answers(table[near])
        return fits

    def step(self, several: bool) -> Step:
        """The step of the answers on one GPU or on several, searched for once."""
        if several not in self._steps:
            step = Step(-_STEP_GIB, _STEP_GIB)
            for _ in range(_ROUNDS):
                headroom = np.linspace(step.below, step.above, _POINTS)
                fits = self.answers(self._table(headroom, np.full(_POINTS, 1.0 * several)))
                known = np.array([-np.inf, *headroom, np.inf])
                step = Step(*known[_POINTS - fits.sum() :][:2].tolist())
                if not np.isfinite(step).all():
                    break
            self._steps[several] = step
        return self._steps[several]

    def features(self, candidates: Candidates) -> pd.DataFrame:
        """The features of candidates: the columns of ``MONOTONE``, or of ``version_1.MONOTONE``."""
        place = candidates.rows, candidates.gpus, candidates.tokens_per_gpu
        if isinstance(candidates.memory, StackMemory):
            assert self.card.reserve is not None
            needed = candidates.memory.needed_gib(*place, self.card.reserve)
            headroom = self.for_pytorch_gib(candidates.usable_gib, candidates.gpus) - needed
        else:
            headroom = candidates.memory.free_gib(*place, candidates.usable_gib)
        return self._table(headroom, (candidates.gpus > 1).astype(float))

    def for_pytorch_gib(self, usable_gib: Floats, gpus: Integers) -> Floats:
        """Usable memory less what a process holds outside PyTorch's allocator, in GiB, shape (candidates,)."""
        outside = self.card.outside_pytorch
        return usable_gib if outside is None else outside.left_gib(usable_gib, gpus)

    def _table(self, headroom: Floats, sharded: Floats) -> pd.DataFrame:
        (name, _) = version_1.MONOTONE if self.card.reserve is None else MONOTONE
        return pd.DataFrame({name: headroom, "sharded": sharded})
