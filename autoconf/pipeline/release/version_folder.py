"""Write the folder of a version: train the predictor, check the orderings, write the card."""

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
from autoconf.memory.store import ModelsTable
from autoconf.pipeline.release import orderings
from autoconf.pipeline.release.random_jobs import random_jobs
from autoconf.predictor import autogluon as autogluon_adapter
from autoconf.predictor import cards
from autoconf.predictor.autogluon import LABEL
from autoconf.predictor.cards import Card
from autoconf.predictor.check_jobs import CHECK_JOBS, candidates
from autoconf.predictor.predictor import MONOTONE, Predictor, memory_of
from autoconf.predictor.rebuild import PREDICTOR, TRAINING_TABLE, check_room

SEED = 20261125  # seed of the drawn jobs
_CHECKS = 800  # number of drawn jobs; about half of them can be split over workers

_TIME = re.compile(r"fit_time|predict_(child_)?time|predict_n_time_per_row|_time_\w+")  # where AutoGluon notes one

Evaluate = Callable[[Predictor], dict[str, Any]]


@contextmanager
def new_version(folder: Path) -> Iterator[Path]:
    """Yield a scratch folder that becomes the folder of a version if the block succeeds.

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
    """Complete a folder that has the profiles of a version's models.

    Args:
        scratch: the folder.
        card: the card without libraries, files and evaluation.
        table: the training table: the columns of ``MONOTONE`` and the label.
        evaluate: a function that evaluates the trained predictor in addition to the orderings.

    Returns:
        The digest of the card.

    Raises:
        AutoConfError: AutoGluon does not import, or the trained predictor breaks a guaranteed ordering.
    """
    table.to_parquet(scratch / TRAINING_TABLE, compression="zstd", index=False)
    autogluon_adapter.fit(table, scratch / PREDICTOR, MONOTONE)
    forget_place_and_time(scratch / PREDICTOR)
    # The learned step is slightly off 0 (at -0.0125 GiB in 2.0.0), but a job without enough memory must not fit.
    least = 0.0 if card.reserve is not None else None
    libraries = autogluon_adapter.installed_libraries()
    card = card.model_copy(update={"libraries": libraries, "least_headroom_gib": least})
    memory = memory_of(card, ModelsTable.read(scratch))
    predictor = Predictor(card, memory, autogluon_adapter.load_tabular(scratch / PREDICTOR, card.version))
    promises = orderings.check(predictor)
    checks = random_jobs(predictor, np.random.default_rng(SEED), _CHECKS)
    fits = predictor.fits(candidates(predictor, checks))
    checks.assign(**{LABEL: fits.astype(int)}).to_csv(scratch / CHECK_JOBS, index=False, lineterminator="\n")
    evaluation = {**evaluate(predictor), "orderings": promises}
    return write_card(scratch, card.model_copy(update={"files": cards.digests(scratch), "evaluation": evaluation}))


def write_card(folder: Path, card: Card) -> str:
    """Write a version's card and return its digest."""
    # Cards of earlier versions do not have these fields, and stay the same, byte for byte.
    later = {"least_headroom_gib", "rules", "fragmentation", "outside_pytorch", "cluster_speed", "base"}
    absent = {name for name in later if getattr(card, name) == Card.model_fields[name].default}
    content = (card.model_dump_json(indent=2, exclude=absent) + "\n").encode()
    (folder / cards.CARD).write_bytes(content)
    return cards.digest(content)


def forget_place_and_time(predictor: Path) -> None:
    """Remove the path (which AutoGluon sets again on loading), the time and the duration of training from the pickles.

    The same input must give the same version, byte for byte, so that anyone can rebuild a version and compare digests.
    AutoGluon has no setting for that. The alternative, digests of answers instead of files, would leave pickles
    unverified; so the attributes are set here, once, in files that this process has just written.
    """
    for file in predictor.rglob("*.pkl"):
        pickled = pickle.loads(file.read_bytes())
        for attribute, value in vars(pickled).items():
            if isinstance(value, str) and Path(value).is_absolute():
                setattr(pickled, attribute, Path(value).name)
        _zero_times(pickled, set())
        file.write_bytes(pickle.dumps(pickled, protocol=4))


def _zero_times(value: Any, seen: set[int]) -> None:
    """Set AutoGluon's times and durations to 0 in objects, dicts and lists."""
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
