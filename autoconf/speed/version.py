"""Versions of the throughput predictor: a card, and an AutoGluon predictor that is loaded when it is first needed.

A version is a folder of ``AutoGluonModels/throughput``, verified as the versions of the memory predictor are
(``autoconf.predictor.integrity``): the card has the digests of the other files, and its own digest is stored here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from autoconf.errors import AutoConfError
from autoconf.memory.units import Floats
from autoconf.predictor import autogluon
from autoconf.predictor.cluster_speed import Bounds, Measured
from autoconf.predictor.integrity import digest, read_file, read_files
from autoconf.predictor.locks import LOADING, PREDICTING
from autoconf.speed.features import MONOTONE
from autoconf.speed.roofline import Constants

FOLDER = Path(__file__).parents[1] / "AutoGluonModels" / "throughput"
# The released versions in order, each with the SHA-256 of its card, which `make throughput` prints.
RELEASED = {"1.1.0": "3f85491f4a887ac503045f60a9fd1bb6b65993cd14ffc4b258514c1e4820e405"}
DEFAULT = list(RELEASED)[-1]
CARD, PREDICTOR, TABLE = "card.json", "predictor", "rows.parquet"
LABEL, WEIGHT = "correction", "weight"


class SpeedCard(BaseModel):
    """The description of a version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    created: str
    constants: Constants
    bounds: dict[str, Bounds]  # by ``Near`` and whether the GPU waits, as ``bounds_key`` joins them
    measured: Measured
    libraries: dict[str, str]
    files: dict[str, str]  # path in the version's folder -> SHA-256
    evaluation: dict[str, Any] = {}


class SpeedPredictor(NamedTuple):
    """A loaded version."""

    card: SpeedCard
    tabular: Any

    def corrections(self, table: pd.DataFrame) -> Floats:
        """Factors by which the physics is corrected, shape (rows,).

        Args:
            table: the columns of ``MONOTONE``.

        Raises:
            AutoConfError: AutoGluon or LightGBM fails.
        """
        try:
            with PREDICTING, autogluon.one_thread():
                found = self.tabular.predict(table[list(MONOTONE)], as_pandas=False)
        except Exception as error:  # incompatible libraries can raise any exception at the first prediction
            raise AutoConfError(
                f"throughput {self.card.version}: the predictor does not answer: {type(error).__name__}: {error}; "
                f"installed libraries: {autogluon.installed_libraries()}"
            ) from error
        factors: Floats = np.exp(np.asarray(found, np.float64))
        return factors


def load(version: str = DEFAULT) -> SpeedPredictor:
    """Load a version, at most once per process.

    Raises:
        AutoConfError: its files are missing, altered or unreadable, or a library does not import.
    """
    with LOADING:
        return _load(version)


@cache
def _load(version: str) -> SpeedPredictor:
    folder, what = FOLDER / version, f"throughput {version}"
    try:
        content = read_file(folder / CARD)
        if digest(content) != RELEASED[version]:
            raise AutoConfError(f"{what}: {CARD} was altered (in {folder}); {_REMEDY}")
        card = SpeedCard.model_validate_json(content)
    except (OSError, ValidationError) as error:
        raise AutoConfError(f"{what}: cannot read {CARD}: {error}") from error
    files = read_files(folder, card.files, what, _REMEDY, also=CARD)
    return SpeedPredictor(card, _tabular(card, files))


_REMEDY = "reinstall autoconf-gpus"


def _tabular(card: SpeedCard, files: Mapping[str, bytes]) -> Any:
    """The AutoGluon predictor: the shipped one, or one trained now if the installed libraries differ."""
    if autogluon.libraries_agree(card):
        return autogluon.load_files(files, f"throughput {card.version}")
    table = pd.read_parquet(BytesIO(files[TABLE]))
    with tempfile.TemporaryDirectory(prefix="ado-autoconf-") as folder:
        place = Path(folder) / PREDICTOR
        autogluon.fit_regression(table, LABEL, WEIGHT, place, MONOTONE)
        return autogluon.load_tabular(place, f"throughput {card.version}")
