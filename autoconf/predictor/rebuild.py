"""Retrain a version in the user's cache, once, if the installed libraries differ from those it was made with."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd

from autoconf.errors import AutoConfError
from autoconf.files import atomic_folder
from autoconf.memory import version_1
from autoconf.memory.model import StackMemory
from autoconf.memory.version_1 import MemoryTable
from autoconf.predictor.autogluon import LABEL, fit, installed_libraries, load_files
from autoconf.predictor.cards import CARD, VersionFiles
from autoconf.predictor.check_jobs import CHECK_JOBS, candidates, check_answers
from autoconf.predictor.integrity import check_ownership, digest, read_file, read_files
from autoconf.predictor.predictor import MONOTONE, Predictor

logger = logging.getLogger(__name__)

PREDICTOR, TRAINING_TABLE = "predictor", "virtual_runs.parquet"  # in the version's folder
_ROOM = 8 << 20  # bytes; training writes less


def cache_folder() -> Path:
    """The folder of rebuilt versions and of records of passed checks."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("ado-autoconf"))


def training_table(runs: pd.DataFrame, predictor: Predictor) -> pd.DataFrame:
    """Features and labels of a version's training table. The table of 1.1.0 has jobs instead of features."""
    if predictor.card.reserve is not None:
        return runs
    return predictor.features(candidates(predictor, runs)).assign(**{LABEL: runs[LABEL].to_numpy(int)})


def rebuilt(version: VersionFiles, memory: MemoryTable | StackMemory) -> Predictor:
    """The predictor for the installed libraries, from the cache; one process per machine trains it if it is missing.

    Args:
        version: the verified version.
        memory: its memory profiles.

    Raises:
        AutoConfError: it cannot be trained or stored, the cache does not belong to the user, cached files were altered,
            or the rebuilt predictor answers the check jobs differently than the version did.
    """
    import filelock

    card, folder = version.card, cache_folder()
    made_of = json.dumps([2, card.files, installed_libraries()], sort_keys=True)  # 2: the format of the folder
    target = folder / f"{card.version}-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"
    try:
        if not target.exists():  # a complete cache may be in a read-only image, so do not write to it
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with filelock.FileLock(f"{target}.lock"):
                if not target.exists():
                    _rebuild(version, memory, target, made_of)
        files = _read(target, made_of, card.version)
    except AutoConfError:
        raise
    except Exception as error:  # a full disk, a lock that cannot be acquired, any exception of training
        raise AutoConfError(
            f"version {card.version}: cannot rebuild it in {folder}: {type(error).__name__}: {error}"
        ) from error
    return Predictor(card, memory, load_files(files, card.version))


def _read(target: Path, made_of: str, version: str) -> dict[str, bytes]:
    """Read the files of a rebuilt predictor, after a check that no other user can have written them."""
    check_ownership(target.parent)
    check_ownership(target)
    card: dict[str, Any] = json.loads(read_file(target / CARD))
    if card.get("made_of") != made_of:
        raise AutoConfError(f"version {version}: {target} was made of something else; remove it")
    return read_files(target, card["files"], f"version {version}, rebuilt", f"remove {target}", also=CARD)


def _rebuild(version: VersionFiles, memory: MemoryTable | StackMemory, target: Path, made_of: str) -> None:
    card = version.card
    libraries = ", ".join(f"{name} {number}" for name, number in installed_libraries().items())
    logger.warning("rebuilding predictor %s for %s: once, takes some seconds ...", card.version, libraries)
    started = time.perf_counter()
    for abandoned in target.parent.glob(f"{target.name}.*/"):  # left by a killed process, as this one has the lock
        shutil.rmtree(abandoned, ignore_errors=True)
    with atomic_folder(target, mode=0o700, replace=False, prefix=f"{target.name}.") as scratch:
        check_room(scratch)
        runs = training_table(pd.read_parquet(BytesIO(version.files[TRAINING_TABLE])), Predictor(card, memory, None))
        monotone = MONOTONE if card.reserve else version_1.MONOTONE
        fit(runs, scratch / PREDICTOR, monotone)
        files = _trained(scratch)
        check_answers(Predictor(card, memory, load_files(files, card.version)), version.files[CHECK_JOBS])
        digests = {name: digest(content) for name, content in files.items()}
        content = json.dumps({"made_of": made_of, "files": digests}, indent=2)
        (scratch / CARD).write_text(content, encoding="utf-8")
    logger.warning("rebuilt predictor %s in %.0f s, kept in %s", card.version, time.perf_counter() - started, target)


def check_room(scratch: Path) -> None:
    """Raise if the disk is too full, which AutoGluon would report as a model that does not train."""
    path = scratch / "room"
    try:
        with path.open("wb") as stream:
            stream.write(bytes(_ROOM))
            os.fsync(stream.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    path.unlink()


def _trained(scratch: Path) -> Mapping[str, bytes]:
    paths = (path for path in scratch.rglob("*") if path.is_file())
    return {path.relative_to(scratch).as_posix(): read_file(path) for path in paths}


# --- remembered checks ------------------------------------------------------------------------------------------------


def check_once(predictor: Predictor, sha256: str, content: bytes) -> None:
    """Check a predictor's answers, unless they passed before with this card and these libraries.

    Args:
        predictor: a loaded version.
        sha256: digest of its card.
        content: content of its file ``CHECK_JOBS``.

    Raises:
        AutoConfError: an answer differs.
    """
    mark = cache_folder() / "checked" / checked_with(sha256)
    if mark.exists():
        return
    check_answers(predictor, content)
    remember_check(sha256)


def checked_with(sha256: str) -> str:
    """The name of the record of a check: a hash of the version, the installed libraries and the kind of machine."""
    system = os.uname() if hasattr(os, "uname") else None
    kind = [system.sysname, system.machine] if system else ["Windows"]
    made_of = json.dumps([sha256, installed_libraries(), kind], sort_keys=True)
    return hashlib.sha256(made_of.encode()).hexdigest()


def remember_check(sha256: str) -> None:
    """Record that the answers of a version passed the check; if this fails, they are checked again next time."""
    mark = cache_folder() / "checked" / checked_with(sha256)
    try:
        mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mark.touch()
    except OSError:
        logger.debug("cannot remember in %s that the answers were checked", mark)
