"""Check jobs: a fixed table of jobs with the answers that the version gave when it was made.

Models, methods and GPU types are spelled exactly as in the card, so no aliases are needed.
"""

from __future__ import annotations

from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd

from autoconf.errors import AutoConfError
from autoconf.jobs.job import read
from autoconf.jobs.presets import SETTINGS, training_stack
from autoconf.memory.candidates import Candidates
from autoconf.memory.units import Booleans
from autoconf.predictor.autogluon import LABEL, installed_libraries
from autoconf.predictor.predictor import Predictor

CHECK_JOBS = "check_jobs.csv"  # in the version's folder
_SETTINGS = ("stack", *SETTINGS)


def check_answers(predictor: Predictor, content: bytes) -> None:
    """Check that a predictor answers its check jobs as it did when the version was made.

    Args:
        predictor: a loaded version.
        content: content of the file ``CHECK_JOBS``.

    Raises:
        AutoConfError: the table cannot be read, or an answer differs.
    """
    version = predictor.card.version
    try:
        jobs = pd.read_csv(BytesIO(content))
    except ValueError as error:
        raise AutoConfError(f"version {version}: cannot read {CHECK_JOBS}: {error}") from error
    answers = predictor.fits(candidates(predictor, jobs))
    wrong = int((answers != jobs[LABEL].to_numpy(bool)).sum())
    if wrong:
        raise AutoConfError(
            f"version {version}: the predictor answers {wrong} of {len(jobs)} check jobs differently than when it was "
            f"made; installed libraries: {installed_libraries()}"
        )


def candidates(predictor: Predictor, jobs: pd.DataFrame) -> Candidates:
    """Convert a table of jobs in a version's domain to candidates.

    Args:
        predictor: the version.
        jobs: a table with the columns of a job and ``number_gpus``; settings of the stack may be absent.

    Raises:
        Unsupported: the version has no memory profile for one of the jobs.
        ValueError: settings of a job exclude each other.
    """
    row = _row_of(predictor)
    gpus = jobs["number_gpus"].to_numpy(np.int64)
    tokens = jobs["batch_size"].to_numpy(float) / gpus * jobs["tokens_per_sample"].to_numpy(float)
    usable = jobs["gpu_model"].map({name: gpu.usable_gib for name, gpu in predictor.domain.gpus.items()})
    rows = np.array([row(*key) for key in _keys(jobs)], np.int64)
    return Candidates(predictor.memory, rows, gpus, tokens, usable.to_numpy(float))


def supported(predictor: Predictor, jobs: pd.DataFrame) -> Booleans:
    """Whether a version has a memory profile for each job of a table, shape (jobs,); arguments as in ``candidates``."""
    row = _row_of(predictor)

    def is_supported(key: tuple[Any, ...]) -> bool:
        try:
            row(*key)
        except ValueError:  # Unsupported, or settings that exclude each other
            return False
        return True

    return np.array([is_supported(key) for key in _keys(jobs)], bool)


def _keys(jobs: pd.DataFrame) -> list[tuple[Any, ...]]:
    """For each job the model, the method, whether gradients accumulate, and the settings of the stack."""
    accumulating = jobs["gradient_accumulation_steps"] > 1
    given = jobs.reindex(columns=_SETTINGS).astype(object)
    settings = [given[name].where(given[name].notna(), None) for name in _SETTINGS]
    return list(zip(jobs["model_name"], jobs["method"], accumulating, *settings, strict=True))


def _row_of(predictor: Predictor) -> Any:
    # A table has many jobs but few stacks.
    @cache
    def row(model: str, method: str, accumulating: bool, *settings: Any) -> int:
        values = [read(name, value) for name, value in zip(_SETTINGS, settings, strict=True)]
        return predictor.memory.row(model, method, training_stack(method, accumulating, *values))

    return row
