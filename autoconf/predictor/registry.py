"""Predictor versions: which there are, loading them, and rebuilding them where libraries differ.

A version is a folder of ``AutoGluonModels``: an AutoGluon predictor, the table it was trained on, the memory figures of
its models, a set of jobs with the released answers, and a card (``autoconf.predictor.cards``), whose digest stands here. Where
the installed libraries do not match the card, the predictor is trained again from the shipped table, once, in the
user's cache folder, and must give the released answers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import threading
import time
import warnings
from functools import cache
from pathlib import Path

import pandas as pd

from autoconf.errors import AutoConfError
from autoconf.memory.model import StackMemory
from autoconf.memory.profile import MOMENTS, ModelsTable, read_figures
from autoconf.memory.reserve import MemoryTable
from autoconf.predictor import user_versions
from autoconf.predictor.autogluon import LABEL, fit, installed_libraries, libraries_agree, load_tabular
from autoconf.predictor.cards import CARD, RELEASED_AGAIN, Card, digests, read_card, verified_card, verify
from autoconf.predictor.predictor import MONOTONE, MONOTONE_1_1_0, Predictor
from autoconf.predictor.user_versions import Models, Place

logger = logging.getLogger(__name__)

MODELS = Path(__file__).parents[1] / "AutoGluonModels"
# The released versions in order, each with the SHA-256 of its card, which `make evaluate` prints.
RELEASED = {
    "1.1.0": "fb5284ff47fd537dff28bfcf451caa97296218cbd17bb6bba695fc21c8cab84d",
    "2.0.0": "e0e1b55c71798c4d158e550b375210c21bf4a11c8abc8ea4b84be5f692d36060",
}
DEFAULT = list(RELEASED)[-1]

PREDICTOR, FIGURES, TRAINING_TABLE, CHECK_JOBS = (
    "predictor",
    "figures.csv",
    "virtual_runs.parquet",
    "check_jobs.csv",
)

_loading = threading.Lock()
_loaded: dict[Place, Predictor] = {}


def known(models: Models = None) -> list[str]:
    """The released versions, and those of a user's own.

    >>> known()[:2]
    ['1.1.0', '2.0.0']
    """
    return [*RELEASED, *user_versions.listed_in(user_versions.folder_of(models))]


def place(version: str, models: Models = None) -> Place:
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


def load(version: str, models: Models = None) -> Predictor:
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
                _loaded[found] = _open(*found)
    return _loaded[found]


def card(version: str, models: Models = None) -> Card:
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


def _check_answers(predictor: Predictor, folder: Path) -> None:
    """Raise if the predictor does not answer the version's fixed set of jobs as the released one did."""
    try:
        jobs = pd.read_csv(folder / CHECK_JOBS)
    except (OSError, ValueError) as error:
        raise AutoConfError(f"version {folder.name}: cannot read {CHECK_JOBS}: {error}") from error
    try:
        answers = predictor.fits(predictor.candidates(jobs))
    except Exception as error:  # libraries that do not go together can fail at the first prediction, with anything
        raise AutoConfError(
            f"version {folder.name}: the predictor does not answer: {type(error).__name__}: {error}; "
            f"installed libraries: {installed_libraries()}"
        ) from error
    wrong = int((answers != jobs[LABEL].to_numpy(bool)).sum())
    if wrong:
        raise AutoConfError(
            f"version {folder.name}: the predictor answers {wrong} of {len(jobs)} check jobs otherwise than the "
            f"released one; installed libraries: {installed_libraries()}"
        )


# --- rebuilding -------------------------------------------------------------------------------------------------------


def training_table(runs: pd.DataFrame, predictor: Predictor) -> pd.DataFrame:
    """The features and the label of a version's training table: of 1.1.0's, which names jobs, from its figures."""
    if predictor.card.reserve is not None:
        return runs
    return predictor.features(predictor.candidates(runs)).assign(**{LABEL: runs[LABEL].to_numpy(int)})


def _rebuilt(folder: Path, card: Card, memory: MemoryTable | StackMemory) -> Path:
    """The cached predictor for the installed libraries, trained first if need be, by one process on the machine."""
    import filelock
    import platformdirs

    cache_folder = Path(platformdirs.user_cache_dir("ado-autoconf"))
    made_of = json.dumps([card.files, installed_libraries()], sort_keys=True)
    target = cache_folder / f"{card.version}-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"
    try:
        if not target.exists():  # it appears in one stroke, and may lie in a read-only image from then on
            cache_folder.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(f"{target}.lock"):
                if not target.exists():
                    _rebuild(folder, card, memory, target)
        expected = json.loads((target / CARD).read_text(encoding="utf-8"))
        verify(target, expected, f"version {card.version}, rebuilt")
    except AutoConfError:
        raise
    except Exception as error:  # a full disk, a lock that cannot be had, anything that training fails with
        raise AutoConfError(f"version {card.version}: cannot rebuild it in {cache_folder}: {error}") from error
    return target / PREDICTOR


def _rebuild(folder: Path, card: Card, memory: MemoryTable | StackMemory, target: Path) -> None:
    libraries = ", ".join(f"{name} {version}" for name, version in installed_libraries().items())
    logger.warning("rebuilding predictor %s for %s: once, takes some seconds ...", card.version, libraries)
    started = time.perf_counter()
    for abandoned in target.parent.glob(f"{target.name}.*/"):  # by a process that was killed: we have the lock
        shutil.rmtree(abandoned, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f"{target.name}."))
    try:
        runs = pd.read_parquet(folder / TRAINING_TABLE)
        monotone = MONOTONE if card.reserve else MONOTONE_1_1_0
        fit(training_table(runs, Predictor(card, memory, None)), scratch / PREDICTOR, monotone)
        tabular = load_tabular(scratch / PREDICTOR, card.version)
        _check_answers(Predictor(card, memory, tabular), folder)
        (scratch / CARD).write_text(json.dumps(digests(scratch), indent=2), encoding="utf-8")
        scratch.rename(target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    logger.warning("rebuilt predictor %s in %.0f s, kept in %s", card.version, time.perf_counter() - started, target)
