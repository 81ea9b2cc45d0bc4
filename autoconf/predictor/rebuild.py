"""Train a version again where the installed libraries are not those that it was made with."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
import time
from pathlib import Path

import pandas as pd

from autoconf.errors import AutoConfError
from autoconf.memory import version_1
from autoconf.memory.model import StackMemory
from autoconf.memory.version_1 import MemoryTable
from autoconf.predictor.autogluon import LABEL, fit, installed_libraries, load_tabular
from autoconf.predictor.cards import CARD, Card, digests, verify
from autoconf.predictor.check_jobs import CHECK_JOBS, candidates, check_answers
from autoconf.predictor.predictor import MONOTONE, Predictor

logger = logging.getLogger(__name__)


PREDICTOR, TRAINING_TABLE = "predictor", "virtual_runs.parquet"  # in the version's folder


def training_table(runs: pd.DataFrame, predictor: Predictor) -> pd.DataFrame:
    """The features and the label of a version's training table: of 1.1.0's, which names jobs, from its figures."""
    if predictor.card.reserve is not None:
        return runs
    return predictor.features(candidates(predictor, runs)).assign(**{LABEL: runs[LABEL].to_numpy(int)})


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
        monotone = MONOTONE if card.reserve else version_1.MONOTONE
        fit(training_table(runs, Predictor(card, memory, None)), scratch / PREDICTOR, monotone)
        tabular = load_tabular(scratch / PREDICTOR, card.version)
        check_answers(Predictor(card, memory, tabular), (folder / CHECK_JOBS).read_bytes())
        (scratch / CARD).write_text(json.dumps(digests(scratch), indent=2), encoding="utf-8")
        scratch.rename(target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    logger.warning("rebuilt predictor %s in %.0f s, kept in %s", card.version, time.perf_counter() - started, target)
