"""Predictor versions: list, verify, load, rebuild. The only module that knows AutoGluon.

A version is a folder of ``AutoGluonModels``: an AutoGluon predictor, the table it was trained on, the memory figures of
its models, a set of jobs with the released answers, and a card with its domain and the digest of every other file. The
card's own digest stands here: nothing is believed, let alone unpickled, before its digest was checked. Where the
installed libraries do not match the card, the predictor is trained again from the shipped table, once, in the user's
cache folder, and must give the released answers.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from autoconf.any_stack import StackMemory
from autoconf.errors import AutoConfError
from autoconf.figures import MOMENTS, ModelsTable, read_figures
from autoconf.memory import GIB, Floats, MemoryTable, Outside, Reserve
from autoconf.names import listed
from autoconf.presets import SETTINGS, training_stack
from autoconf.rules import Booleans, Candidates
from autoconf.stack import Stack
from autoconf.workload import read

logger = logging.getLogger(__name__)

MODELS = Path(__file__).parent / "AutoGluonModels"
# The released versions in order, each with the SHA-256 of its card, which `make evaluate` prints.
RELEASED = {
    "1.1.0": "fb5284ff47fd537dff28bfcf451caa97296218cbd17bb6bba695fc21c8cab84d",
    "2.0.0": "e0e1b55c71798c4d158e550b375210c21bf4a11c8abc8ea4b84be5f692d36060",
}
DEFAULT = list(RELEASED)[-1]

PREDICTOR, CARD, FIGURES, TRAINING_TABLE, CHECK_JOBS = (
    "predictor",
    "card.json",
    "figures.csv",
    "virtual_runs.parquet",
    "check_jobs.csv",
)
LABEL = "fits"
_STACK = ("stack", *SETTINGS)
# The predictor's features, each with the direction in which it may move the probability of fitting: of versions that
# say themselves what must stay free, and of those whose predictor learnt all of it.
MONOTONE = {"headroom_gib": 1, "sharded": -1}
MONOTONE_1_1_0 = {"free_gib": 1, "sharded": -1}
# Versions of these must agree with the card's, up to the given number of components, for the shipped pickle to be used.
_MUST_AGREE = {"autogluon.tabular": 2, "lightgbm": 1, "numpy": 1, "pandas": 1, "scikit-learn": 1}


class _Typed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Gpu(_Typed):
    """A GPU type: memory that CUDA reports as usable, and the other names it goes by."""

    usable_gib: float
    aliases: list[str] = []


class Model(_Typed):
    """A model: its aliases, and the longest sample where learned positions limit it."""

    aliases: list[str] = []
    max_tokens_per_sample: int | None = None


class Domain(_Typed):
    """The jobs that a version answers."""

    models: dict[str, Model]
    methods: list[str]
    gpus: dict[str, Gpu]
    max_tokens_per_sample: int
    max_batch_size: int
    max_gpus: int


class Card(_Typed):
    """What a version is: its domain, how it decides, what made it, the digests of its files, how good it is."""

    version: str
    created: str
    domain: Domain
    threshold: float  # a job is said to fit where the predicted probability reaches this
    reserve: Reserve | None = None  # what must stay free for that, read off real runs; None: the predictor learnt it
    libraries: dict[str, str]
    files: dict[str, str]  # path in the version's folder -> SHA-256
    evaluation: dict[str, Any] = {}


class Predictor:
    """A loaded version: decides whether candidates fit."""

    def __init__(self, card: Card, memory: MemoryTable | StackMemory, tabular: Any) -> None:
        self.card = card
        self.memory = memory
        self._tabular = tabular
        import threadpoolctl  # sets an environment variable: see _open

        self._openmp = threadpoolctl.ThreadpoolController().select(user_api="openmp")
        self._lock = threading.Lock()

    @property
    def domain(self) -> Domain:
        return self.card.domain

    def about(self, models: dict[str, Model], memory: StackMemory) -> Predictor:
        """The same predictor, asked about other models.

        Args:
            models: in place of the domain's.
            memory: their figures.
        """
        domain = self.domain.model_copy(update={"models": models})
        return Predictor(self.card.model_copy(update={"domain": domain}), memory, self._tabular)

    def row(self, model: str, method: str, stack: Stack) -> int | str:
        """The row of a job's figures, or the sentence that says why the version has none.

        Args:
            model: one of the domain's models.
            method: one of the domain's methods.
            stack: how the job trains.
        """
        found = self.memory.row(model, method, stack)
        if isinstance(found, Outside):
            are = "are" if len(found.asked) > 1 else "is"
            return f"{listed(found.asked)} {are} not in the domain of version {self.card.version}{found.why}"
        return found

    def probabilities(self, table: pd.DataFrame) -> Floats:
        """Predicted probability of fitting for a table of ``features``, shape (rows,)."""
        if table.empty:
            return np.zeros(0)
        # Neither AutoGluon nor LightGBM promises that prediction is thread-safe. One OpenMP thread: on a busy machine a
        # second one costs 20 ms of waiting for what takes a tenth of one.
        with self._lock, self._openmp.limit(limits=1):
            return self._tabular.predict_proba(table, as_pandas=False, as_multiclass=False)

    def answers(self, table: pd.DataFrame) -> Booleans:
        """Whether the predictor says "fits" for a table of ``features``, shape (rows,)."""
        return self.probabilities(table) >= self.card.threshold

    def fits(self, candidates: Candidates) -> Booleans:
        """Whether the predictor says that candidates fit, shape (candidates,)."""
        return self.answers(self.features(candidates))

    def features(self, candidates: Candidates) -> pd.DataFrame:
        """What the predictor is asked about candidates: the columns of ``MONOTONE``, or of ``MONOTONE_1_1_0``."""
        sharded = (candidates.gpus > 1).astype(float)
        place = candidates.rows, candidates.gpus, candidates.tokens_per_gpu
        if isinstance(candidates.memory, StackMemory):
            assert self.card.reserve is not None
            headroom = candidates.usable_gib - candidates.memory.needed_gib(*place, self.card.reserve)
            return pd.DataFrame({"headroom_gib": headroom, "sharded": sharded})
        free = candidates.usable_gib - candidates.memory.peak_bytes(*place) / GIB
        return pd.DataFrame({"free_gib": free, "sharded": sharded})

    def candidates(self, runs: pd.DataFrame) -> Candidates:
        """Candidates of a table of runs inside the domain: each line one job on ``number_gpus`` GPUs.

        Raises:
            ValueError: a job is outside the domain.
        """
        rows = self._rows(runs)
        outside = next((row for row in rows if isinstance(row, str)), None)
        if outside is not None:
            raise ValueError(outside)
        gpus = runs["number_gpus"].to_numpy(np.int64)
        tokens = runs["batch_size"].to_numpy(float) / gpus * runs["tokens_per_sample"].to_numpy(float)
        usable = runs["gpu_model"].map({name: gpu.usable_gib for name, gpu in self.domain.gpus.items()}).to_numpy(float)
        return Candidates(self.memory, np.array(rows, np.int64), gpus, tokens, usable)

    def problems(self, runs: pd.DataFrame) -> list[str]:
        """Why the version has no figures for each of some runs; empty text where it has."""
        return [row if isinstance(row, str) else "" for row in self._rows(runs)]

    def _rows(self, runs: pd.DataFrame) -> list[int | str]:
        accumulating = runs["gradient_accumulation_steps"] > 1
        columns = [runs[name] if name in runs else [None] * len(runs) for name in _STACK]
        keys = list(zip(runs["model_name"], runs["method"], accumulating, *columns, strict=True))
        found = {key: self._row(*key) for key in dict.fromkeys(keys)}
        return [found[key] for key in keys]

    def _row(self, model: str, method: str, accumulating: bool, *stack: Any) -> int | str:
        try:
            settings = [read(name, value) for name, value in zip(_STACK, stack, strict=True)]
            return self.row(model, method, training_stack(method, accumulating, *settings))
        except ValueError as error:  # settings that exclude each other
            return str(error)


# --- loading ----------------------------------------------------------------------------------------------------------

_loading = threading.Lock()
_loaded: dict[str, Predictor] = {}


def load(version: str) -> Predictor:
    """The predictor of a released version, loaded at most once per process.

    Raises:
        AutoConfError: the version's files are missing, altered or unreadable, a library does not import, or a rebuilt
            predictor does not give the released answers.
    """
    if version not in _loaded:
        with _loading:
            if version not in _loaded:
                _loaded[version] = _open(MODELS / version, RELEASED[version])
    return _loaded[version]


@cache
def card(version: str) -> Card:
    """The card of a released version.

    Raises:
        AutoConfError: the card is missing or altered.

    >>> card("1.1.0").domain.methods
    ['full', 'lora']
    """
    return read_card(MODELS / version, RELEASED[version])


def read_card(folder: Path, sha256: str) -> Card:
    """Read a version's card, which must have the given digest.

    Raises:
        AutoConfError: the card is missing, altered or not one.
    """
    try:
        content = (folder / CARD).read_bytes()
        if digest(content) != sha256:
            raise AutoConfError(f"version {folder.name}: {CARD} was altered (in {folder}); reinstall ado-autoconf")
        return Card.model_validate_json(content)
    except (OSError, ValidationError) as error:
        raise AutoConfError(f"version {folder.name}: cannot read {CARD}: {error}") from error


def verified_card(folder: Path, sha256: str) -> Card:
    """Check every file of a version, on nothing but the digest of its card, and read the card.

    Raises:
        AutoConfError: a file is missing, altered or extra; the message names it.
    """
    card = read_card(folder, sha256)
    verify(folder, card.files, f"version {card.version}")
    return card


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
    card = verified_card(folder, sha256)
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


def digest(content: bytes) -> str:
    """The SHA-256 of a file's content."""
    return hashlib.sha256(content).hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, except the card (which holds them) and caches of Python."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != CARD)
    return {p.relative_to(folder).as_posix(): digest(p.read_bytes()) for p in files}


def verify(folder: Path, expected: dict[str, str], what: str) -> None:
    """Check that a folder holds exactly the files that it should.

    Raises:
        AutoConfError: a file is missing, altered or extra; the message names it.
    """
    try:
        found = digests(folder)
    except OSError as error:
        raise AutoConfError(f"{what}: cannot read its files: {error}") from error
    for problem, names in (
        ("is missing", expected.keys() - found.keys()),
        ("does not belong to it", found.keys() - expected.keys()),
        ("was altered", {name for name in expected.keys() & found.keys() if expected[name] != found[name]}),
    ):
        if names:
            raise AutoConfError(f"{what}: {', '.join(sorted(names))} {problem} (in {folder}); reinstall ado-autoconf")


def installed_libraries() -> dict[str, str]:
    """Installed versions of the libraries that a pickled predictor depends on.

    Raises:
        AutoConfError: one of them is not installed.
    """
    try:
        return {library: importlib.metadata.version(library) for library in _MUST_AGREE}
    except importlib.metadata.PackageNotFoundError as error:
        raise AutoConfError(f"{error.name} is not installed; reinstall ado-autoconf") from error


def libraries_agree(card: Card) -> bool:
    """Whether the shipped predictor may be unpickled by the installed libraries."""
    installed = installed_libraries()
    return all(
        installed[library].split(".")[:depth] == card.libraries.get(library, "").split(".")[:depth]
        for library, depth in _MUST_AGREE.items()
    )


def _tabular_predictor() -> Any:
    try:
        import lightgbm  # noqa: F401 - AutoGluon imports it late; a broken one must show here
        from autogluon.tabular import TabularPredictor
    except Exception as error:  # a broken library can fail at import with anything
        raise AutoConfError(f"AutoGluon or LightGBM does not import: {type(error).__name__}: {error}") from error
    return TabularPredictor


def load_tabular(path: Path, version: str) -> Any:
    """Unpickle an AutoGluon predictor whose files were verified, and keep its model in memory."""
    try:
        with _quiet():
            # Which versions may unpickle it is `libraries_agree`'s decision. Without a verbosity, AutoGluon would warn
            # of every difference from the machine that trained it.
            tabular = _tabular_predictor().load(
                str(path), verbosity=0, require_version_match=False, require_py_version_match=False
            )
            tabular.persist(max_memory=None)  # a megabyte: looking how much memory is free takes a tenth of a second
    except AutoConfError:
        raise
    except Exception as error:  # unpickling can fail with anything
        raise AutoConfError(f"version {version}: cannot load {path}: {type(error).__name__}: {error}") from error
    return tabular


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


# --- training and rebuilding ------------------------------------------------------------------------------------------


@contextmanager
def _quiet() -> Iterator[None]:
    """AutoGluon calls it an error that there is no torch, which LightGBM does without, and sets log levels."""
    about_torch = logging.getLogger("autogluon.common.utils.resource_utils")
    disabled = about_torch.disabled
    levels = {other: other.level for other in map(logging.getLogger, ("autogluon", "pandas"))}
    about_torch.disabled = True
    try:
        yield
    finally:
        about_torch.disabled = disabled
        for other, level in levels.items():
            other.setLevel(level)


def fit(table: pd.DataFrame, folder: Path, monotone: Mapping[str, int] = MONOTONE) -> None:
    """Train a predictor and leave what prediction needs in ``folder``.

    Args:
        table: the features and ``LABEL``.
        folder: created; must not exist.
        monotone: each feature with the direction (1 or -1) in which it may move the probability of fitting.
    """
    gbm = {
        "monotone_constraints": list(monotone.values()),
        "max_bin": 8191,  # the edge is sharp: a bin must be a few MiB wide there
        "min_data_in_bin": 1,
        "min_data_in_leaf": 5,
        "num_leaves": 15,
        "learning_rate": 0.2,
        "num_boost_round": 100,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,
        "seed": 0,
    }
    scratch = folder.with_suffix(".fit")
    with _quiet():
        predictor = _tabular_predictor()(
            label=LABEL, path=str(scratch), problem_type="binary", eval_metric="log_loss", verbosity=0
        )
        predictor.fit(
            table[[*monotone, LABEL]],
            hyperparameters={"GBM": gbm},
            holdout_frac=0.1,
            fit_weighted_ensemble=False,
            num_bag_folds=0,
            num_stack_levels=0,
            dynamic_stacking=False,
            calibrate=False,
            num_cpus=1,
            num_gpus=0,
        )
    predictor.clone_for_deployment(str(folder))
    shutil.rmtree(scratch)


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
