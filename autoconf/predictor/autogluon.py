"""AutoGluon's part of a version: train a predictor, load one. The only module that knows AutoGluon."""

from __future__ import annotations

import importlib.metadata
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from autoconf.errors import AutoConfError
from autoconf.predictor.cards import Card
from autoconf.predictor.integrity import private_copy

LABEL = "fits"
# Versions of these must agree with the card's, up to the given number of components, for the shipped pickle to be used.
_MUST_AGREE = {"autogluon.tabular": 2, "lightgbm": 1, "numpy": 1, "pandas": 1, "scikit-learn": 1}


def installed_libraries() -> dict[str, str]:
    """Installed versions of the libraries that a pickled predictor depends on.

    Raises:
        AutoConfError: one of them is not installed.
    """
    try:
        return {library: importlib.metadata.version(library) for library in _MUST_AGREE}
    except importlib.metadata.PackageNotFoundError as error:
        raise AutoConfError(f"{error.name} is not installed; reinstall autoconf-gpus") from error


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


def load_files(files: Mapping[str, bytes], version: str) -> Any:
    """Unpickle an AutoGluon predictor from the content of its files, and from nothing else.

    Args:
        files: paths in the version's folder and content of the files, which were verified; others are left out.
        version: for messages.

    Raises:
        AutoConfError: a library does not import, the files cannot be unpickled, or there is no room for a private copy.
    """
    with private_copy({name: content for name, content in files.items() if name.startswith("predictor/")}) as folder:
        return load_tabular(folder / "predictor", version)


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


def fit(table: pd.DataFrame, folder: Path, monotone: Mapping[str, int]) -> None:
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
