"""The folder of a version: predictor trained, promises checked, card written; there complete or not at all."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from autoconf.errors import AutoConfError
from autoconf.files import atomic_folder, opened, reason
from autoconf.memory.model import StackMemory
from autoconf.memory.store import ModelsTable
from autoconf.pipeline.release import orderings
from autoconf.pipeline.release.random_jobs import random_jobs
from autoconf.predictor import autogluon as autogluon_adapter
from autoconf.predictor import cards
from autoconf.predictor.autogluon import LABEL
from autoconf.predictor.cards import Card
from autoconf.predictor.check_jobs import CHECK_JOBS, candidates
from autoconf.predictor.predictor import MONOTONE, Predictor
from autoconf.predictor.rebuild import PREDICTOR, TRAINING_TABLE, check_room

SEED = 20261125  # of jobs that are drawn
_CHECKS = 800  # drawn; about half of them can be spread over workers

_TIME = re.compile(r"fit_time|predict_(child_)?time|predict_n_time_per_row|_time_\w+")  # where AutoGluon notes one

Evaluate = Callable[[Predictor], dict[str, Any]]


@contextmanager
def new_version(folder: Path) -> Iterator[Path]:
    """A scratch folder that becomes a version's when all went well.

    Raises:
        BadInput: it cannot be written to.
        AutoConfError: writing fails, as on a full disk.
    """
    with opened(folder.parent, lambda: atomic_folder(folder), "to it") as scratch:
        try:
            check_room(scratch)
            yield scratch
        except OSError as error:
            raise AutoConfError(f"{folder}: writing failed: {reason(error)}") from error


def complete(scratch: Path, card: Card, table: pd.DataFrame, evaluate: Evaluate = lambda predictor: {}) -> str:
    """Complete a folder that has the figures of a version's models.

    Args:
        scratch: the folder.
        card: with all but libraries, files and evaluation.
        table: what the predictor learns: the columns of ``MONOTONE`` and the label.
        evaluate: what to measure besides the orderings, with the predictor as it is trained.

    Returns:
        The digest of the card.

    Raises:
        AutoConfError: AutoGluon does not import, or the trained predictor breaks an ordering that versions promise.
    """
    table.to_parquet(scratch / TRAINING_TABLE, compression="zstd", index=False)
    autogluon_adapter.fit(table, scratch / PREDICTOR, MONOTONE)
    _forget_place_and_time(scratch / PREDICTOR)
    # The learned step lies a little off 0 (at -0.0125 GiB in 2.0.0): a job with less than it needs must not fit.
    least = 0.0 if card.reserve is not None else None
    libraries = autogluon_adapter.installed_libraries()
    card = card.model_copy(update={"libraries": libraries, "least_headroom_gib": least})
    memory = StackMemory(ModelsTable.read(scratch))
    predictor = Predictor(card, memory, autogluon_adapter.load_tabular(scratch / PREDICTOR, card.version))
    promises = orderings.check(predictor)
    checks = random_jobs(predictor, np.random.default_rng(SEED), _CHECKS)
    fits = predictor.fits(candidates(predictor, checks))
    checks.assign(**{LABEL: fits.astype(int)}).to_csv(scratch / CHECK_JOBS, index=False, lineterminator="\n")
    evaluation = {**evaluate(predictor), "orderings": promises}
    return write_card(scratch, card.model_copy(update={"files": cards.digests(scratch), "evaluation": evaluation}))


def write_card(folder: Path, card: Card) -> str:
    """Write a version's card and return its digest."""
    # Cards of versions up to 2.0.0 do not have the field, and stay the same to the byte.
    absent = {"least_headroom_gib"} if card.least_headroom_gib is None else set()
    content = (card.model_dump_json(indent=2, exclude=absent) + "\n").encode()
    (folder / cards.CARD).write_bytes(content)
    return cards.digest(content)


def _forget_place_and_time(predictor: Path) -> None:
    """Remove from the pickles where AutoGluon trained (it sets that anew on loading), when, and for how long.

    The same input must give the same version, byte for byte, so that anyone can rebuild a version and compare digests.
    AutoGluon has no setting for that. The alternative, digests of what a version answers instead of what it is made of,
    would leave pickles unverified; so their attributes are set here, once, on files that this process just wrote.
    """
    for file in predictor.rglob("*.pkl"):
        pickled = pickle.loads(file.read_bytes())
        for attribute, value in vars(pickled).items():
            if isinstance(value, str) and Path(value).is_absolute():
                setattr(pickled, attribute, Path(value).name)
        _zero_times(pickled, set())
        file.write_bytes(pickle.dumps(pickled, protocol=4))


def _zero_times(value: Any, seen: set[int]) -> None:
    """Set what AutoGluon notes of times and durations to 0, in objects, dicts and lists of them."""
    if id(value) in seen:
        return
    seen.add(id(value))
    inner = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    for name, part in inner.items():
        if isinstance(part, float) and _TIME.fullmatch(str(name)):
            inner[name] = 0.0
        else:
            _zero_times(part, seen)
    for part in value if isinstance(value, list | tuple) else ():
        _zero_times(part, seen)
