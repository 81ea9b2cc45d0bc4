"""List and load predictor versions.

A version is a folder of ``AutoGluonModels``: an AutoGluon predictor, its training table, the memory profiles of its
models, check jobs with their answers, and a card (``autoconf.predictor.cards``) whose digest is stored here. If the
installed libraries do not match the card, the predictor is retrained (``autoconf.predictor.rebuild``).
"""

from __future__ import annotations

import os
import platform
import warnings
from functools import cache
from io import BytesIO
from pathlib import Path

from autoconf.distribution import check_installation
from autoconf.errors import AutoConfError
from autoconf.memory.model import StackMemory
from autoconf.memory.store import MODELS as MODEL_NAMES
from autoconf.memory.store import MOMENTS, ModelsTable
from autoconf.memory.version_1 import FIGURES, MemoryTable, read_figures
from autoconf.predictor import user_versions
from autoconf.predictor.autogluon import installed_libraries, libraries_agree, load_files
from autoconf.predictor.cards import RELEASED_AGAIN, Card, VersionFiles, read_card, read_version
from autoconf.predictor.check_jobs import CHECK_JOBS
from autoconf.predictor.locks import LOADING
from autoconf.predictor.predictor import Predictor, memory_of
from autoconf.predictor.rebuild import check_once, rebuilt
from autoconf.predictor.user_versions import ModelsFolder, VersionFolder

MODELS = Path(__file__).parents[1] / "AutoGluonModels"
# The released versions in order, each with the SHA-256 of its card, which `make evaluate` prints.
RELEASED = {
    "1.1.0": "fb5284ff47fd537dff28bfcf451caa97296218cbd17bb6bba695fc21c8cab84d",
    "2.0.0": "e0e1b55c71798c4d158e550b375210c21bf4a11c8abc8ea4b84be5f692d36060",
    "3.0.0": "0054011e6adefb83cf02984fc3b0a41f5f2ce89dd053a04a25ed508fd592ea28",
}
DEFAULT = "3.0.0"
_CHECKED = frozenset(RELEASED.values())  # checked with the libraries of their cards when they were made


_loaded: dict[VersionFolder, Predictor] = {}


def known(models: ModelsFolder = None) -> list[str]:
    """List the released versions and the user versions.

    >>> known()[:2]
    ['1.1.0', '2.0.0']
    """
    return [*RELEASED, *user_versions.listed_in(user_versions.folder_of(models))]


def loaded() -> list[Predictor]:
    """The predictors that this process has loaded."""
    return [*_loaded.values()]


def place(version: str, models: ModelsFolder = None) -> VersionFolder:
    """Locate a version.

    Args:
        version: the number of a released version, or the name of a user version, which contains a ``+``.
        models: folder of user versions; by default the one that the environment variable ``AUTOCONF_MODELS`` names.

    Raises:
        ValueError: there is no such version, or ``models`` is not a directory.
        AutoConfError: ``AUTOCONF_MODELS`` is needed but not set, or not a directory; or a user version has changed
            since its first use.
    """
    if version in RELEASED:
        return VersionFolder(MODELS / version, RELEASED[version])
    if user_versions.is_own(version):
        return user_versions.place(version, user_versions.folder_of(models))
    raise ValueError(f"model_version {version!r} is not released; released versions are {', '.join(RELEASED)}")


def load(version: str, models: ModelsFolder = None) -> Predictor:
    """Load the predictor of a version, at most once per process.

    Args:
        version: as in ``place``.
        models: as in ``place``.

    Raises:
        ValueError: there is no such version.
        AutoConfError: the version's files are missing, altered or unreadable, a library does not import, or a rebuilt
            predictor gives other answers than the version did when it was made.
    """
    return load_from(place(version, models))


def load_from(found: VersionFolder) -> Predictor:
    """The predictor in a place, loaded at most once per process.

    Raises:
        AutoConfError: as ``load`` raises it.
    """
    if found not in _loaded:
        with LOADING:
            if found not in _loaded:
                check_installation()
                _loaded[found] = _open(*found)
    return _loaded[found]


def card(version: str, models: ModelsFolder = None) -> Card:
    """Read the card of a version.

    Raises:
        ValueError: there is no such version.
        AutoConfError: the card is missing or altered.

    >>> card("1.1.0").domain.methods
    ['full', 'lora']
    """
    return _card(place(version, models))


@cache
def _card(found: VersionFolder) -> Card:
    return read_card(*found, remedy=_remedy(found.folder))


def _remedy(folder: Path) -> str:
    """The advice to a user whose version is incomplete or altered."""
    return user_versions.RESTORE if user_versions.is_own(folder.name) else RELEASED_AGAIN


# scikit-learn and threadpoolctl set these when they are imported.
_SET_BY_LIBRARIES = {"KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"}


def _open(folder: Path, sha256: str) -> Predictor:
    # Libraries that AutoGluon imports add warnings filters and environment variables to the process; remove them again.
    added = _SET_BY_LIBRARIES - os.environ.keys()
    try:
        with warnings.catch_warnings():
            return _opened(folder, sha256)
    finally:
        for name in added:
            os.environ.pop(name, None)


def _opened(folder: Path, sha256: str) -> Predictor:
    version = read_version(folder, sha256, _remedy(folder))
    card, files, _ = version
    if card.version != folder.name:
        raise AutoConfError(f"version {folder.name}: its card is that of version {card.version} (in {folder})")
    memory = _memory(version)
    if not libraries_agree(card):
        return rebuilt(version, memory)
    predictor = Predictor(card, memory, load_files(files, card.version))
    released_with = ("Linux", "x86_64", card.libraries)
    if sha256 not in _CHECKED or (platform.system(), platform.machine(), installed_libraries()) != released_with:
        check_once(predictor, sha256, files[CHECK_JOBS])
    return predictor


def _memory(version: VersionFiles) -> MemoryTable | StackMemory:
    card, files, base = version
    name = MOMENTS if card.reserve else FIGURES
    try:
        if card.reserve:
            table = ModelsTable(files[MOMENTS], files[MODEL_NAMES], base.__getitem__)
            return memory_of(card, table)
        return MemoryTable(read_figures(BytesIO(files[FIGURES])))
    except (OSError, ValueError, KeyError) as error:
        raise AutoConfError(f"version {card.version}: cannot read {name}: {error}") from error
