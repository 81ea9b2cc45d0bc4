"""Predictor versions: which there are, loading them, and rebuilding them where libraries differ.

A version is a folder of ``AutoGluonModels``: an AutoGluon predictor, the table it was trained on, the memory figures of
its models, a set of jobs with the released answers, and a card (``autoconf.predictor.cards``), whose digest stands
here. Where
the installed libraries do not match the card, the predictor is trained again from the shipped table, once, in the
user's cache folder, and must give the released answers.
"""

from __future__ import annotations

import os
import threading
import warnings
from functools import cache
from pathlib import Path

from autoconf.distribution import check_installation
from autoconf.errors import AutoConfError
from autoconf.memory.model import StackMemory
from autoconf.memory.store import MOMENTS, ModelsTable
from autoconf.memory.version_1 import MemoryTable, read_figures
from autoconf.predictor import user_versions
from autoconf.predictor.autogluon import libraries_agree, load_tabular
from autoconf.predictor.cards import RELEASED_AGAIN, Card, read_card, verified_card
from autoconf.predictor.predictor import Predictor
from autoconf.predictor.rebuild import (
    FIGURES,
    PREDICTOR,
    _check_answers,
    _rebuilt,
)
from autoconf.predictor.user_versions import ModelsFolder, Place

MODELS = Path(__file__).parents[1] / "AutoGluonModels"
# The released versions in order, each with the SHA-256 of its card, which `make evaluate` prints.
RELEASED = {
    "1.1.0": "fb5284ff47fd537dff28bfcf451caa97296218cbd17bb6bba695fc21c8cab84d",
    "2.0.0": "e0e1b55c71798c4d158e550b375210c21bf4a11c8abc8ea4b84be5f692d36060",
}
DEFAULT = list(RELEASED)[-1]


_loading = threading.Lock()
_loaded: dict[Place, Predictor] = {}


def known(models: ModelsFolder = None) -> list[str]:
    """The released versions, and those of a user's own.

    >>> known()[:2]
    ['1.1.0', '2.0.0']
    """
    return [*RELEASED, *user_versions.listed_in(user_versions.folder_of(models))]


def place(version: str, models: ModelsFolder = None) -> Place:
    """Where a version lies.

    Args:
        version: a released version's number, which no version of a user's own can have, or the name of one of these.
        models: folder of a user's own versions; by default what ``AUTOCONF_MODELS`` names.

    Raises:
        ValueError: there is no such version, or ``models`` is no folder.
        AutoConfError: the environment names no folder of versions though one is needed, or what is no folder.
    """
    if version in RELEASED:
        return Place(MODELS / version, RELEASED[version])
    if user_versions.is_own(version):
        return user_versions.place(version, user_versions.folder_of(models))
    raise ValueError(f"model_version {version!r} is not released; released versions are {', '.join(RELEASED)}")


def load(version: str, models: ModelsFolder = None) -> Predictor:
    """The predictor of a version, loaded at most once per process.

    Args:
        version: as ``place`` has it.
        models: as ``place`` has it.

    Raises:
        ValueError: there is no such version.
        AutoConfError: the version's files are missing, altered or unreadable, a library does not import, or a rebuilt
            predictor does not give the answers that the version gave when it was made.
    """
    found = place(version, models)
    if found not in _loaded:
        with _loading:
            if found not in _loaded:
                check_installation()
                _loaded[found] = _open(*found)
    return _loaded[found]


def card(version: str, models: ModelsFolder = None) -> Card:
    """The card of a version.

    Raises:
        ValueError: there is no such version.
        AutoConfError: the card is missing or altered.

    >>> card("1.1.0").domain.methods
    ['full', 'lora']
    """
    return _card(place(version, models))


@cache
def _card(found: Place) -> Card:
    return read_card(*found, remedy=_remedy(found.folder))


def _remedy(folder: Path) -> str:
    """What a user may do where a version is not whole, or not what it was."""
    if not user_versions.is_own(folder.name):
        return RELEASED_AGAIN
    return f"if that was you, take it as it is by: ado-autoconf versions {folder.name} --trust"


# scikit-learn and threadpoolctl set these when they are imported.
_SET_BY_LIBRARIES = {"KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"}


def _open(folder: Path, sha256: str) -> Predictor:
    # Libraries that AutoGluon imports add warnings filters and environment variables; the host process keeps its own.
    added = _SET_BY_LIBRARIES - os.environ.keys()
    try:
        with warnings.catch_warnings():
            return _opened(folder, sha256)
    finally:
        for name in added:
            os.environ.pop(name, None)


def _opened(folder: Path, sha256: str) -> Predictor:
    card = verified_card(folder, sha256, _remedy(folder))
    if card.version != folder.name:
        raise AutoConfError(f"version {folder.name}: its card is that of version {card.version} (in {folder})")
    memory = _memory(folder, card)
    path = folder / PREDICTOR if libraries_agree(card) else _rebuilt(folder, card, memory)
    predictor = Predictor(card, memory, load_tabular(path, card.version))
    _check_answers(predictor, folder)
    return predictor


def _memory(folder: Path, card: Card) -> MemoryTable | StackMemory:
    name = MOMENTS if card.reserve else FIGURES
    try:
        return StackMemory(ModelsTable(folder)) if card.reserve else MemoryTable(read_figures(folder / FIGURES))
    except (OSError, ValueError, KeyError) as error:
        raise AutoConfError(f"version {card.version}: cannot read {name}: {error}") from error


# --- rebuilding -------------------------------------------------------------------------------------------------------
