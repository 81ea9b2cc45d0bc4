"""Train and load AutoGluon predictors. This is the only module that uses AutoGluon."""

from __future__ import annotations

import importlib.metadata
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from autoconf.errors import AutoConfError
from autoconf.predictor.integrity import private_copy

LABEL = "fits"
# The shipped pickle is used only if these libraries match the card, in this many leading components of their versions.
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


class MadeWith(Protocol):
    """A card with the versions of the libraries that its predictor was made with."""

    @property
    def libraries(self) -> Mapping[str, str]: ...


def libraries_agree(card: MadeWith) -> bool:
    """Whether the shipped predictor may be unpickled by the installed libraries."""
    installed = installed_libraries()
    return all(
        installed[library].split(".")[:depth] == card.libraries.get(library, "").split(".")[:depth]
        for library, depth in _MUST_AGREE.items()
    )


def _tabular_predictor() -> Any:
    try:
        import lightgbm  # noqa: F401 - AutoGluon imports it late; a broken installation must fail here
        from autogluon.tabular import TabularPredictor
    except Exception as error:  # a broken library can raise any exception at import
        raise AutoConfError(f"AutoGluon or LightGBM does not import: {type(error).__name__}: {error}") from error
    return TabularPredictor


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit OpenMP to one thread: a process that has used several cannot be forked, or its child would wait forever."""
    _tabular_predictor()  # only libraries that are loaded can be limited
    import threadpoolctl  # sets an environment variable, which the registry removes again

    with threadpoolctl.ThreadpoolController().select(user_api="openmp").limit(limits=1):
        yield


def load_tabular(path: Path, version: str) -> Any:
    """Unpickle an AutoGluon predictor from verified files, and keep its model in memory."""
    try:
        with _quiet(), one_thread():
            # `libraries_agree` decides which versions may unpickle it. Without verbosity=0, AutoGluon would warn about
            # every difference from the machine that trained it.
            tabular = _tabular_predictor().load(
                str(path), verbosity=0, require_version_match=False, require_py_version_match=False
            )
            tabular.persist(max_memory=None)  # one megabyte; AutoGluon's check of free memory would take 0.1 s
    except AutoConfError:
        raise
    except Exception as error:  # unpickling can raise any exception
        raise AutoConfError(f"version {version}: cannot load {path}: {type(error).__name__}: {error}") from error
    return tabular


def load_files(files: Mapping[str, bytes], version: str) -> Any:
    """Unpickle an AutoGluon predictor from the verified content of its files only.

    Args:
        files: content of the version's files by path in its folder; only files of the predictor are used.
        version: the version, for messages.

    Raises:
        AutoConfError: a library does not import, the files cannot be unpickled, or no private copy can be written.
    """
    with private_copy({name: content for name, content in files.items() if name.startswith("predictor/")}) as folder:
        return load_tabular(folder / "predictor", version)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress AutoGluon's error about missing torch, which LightGBM does not need, and restore log levels."""
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
    """Train a predictor and write the files that prediction needs.

    Args:
        table: the features and ``LABEL``.
        folder: the folder to create; it must not exist.
        monotone: the features, each with the direction (1 or -1) in which it may move the probability of fitting.
    """
    gbm = {
        "monotone_constraints": list(monotone.values()),
        "max_bin": 8191,  # the boundary is sharp, so bins near it must be only a few MiB wide
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


def fit_regression(
    table: pd.DataFrame, label: str, weight: str, folder: Path, monotone: Mapping[str, int], **settings: float
) -> None:
    """Train a regression and write the files that prediction needs.

    Args:
        table: the features, the label, and the weight of each row.
        label: the column to predict.
        weight: the column of weights.
        folder: the folder to create; it must not exist.
        monotone: the features, each with the direction (1 or -1) in which it may move the label, or 0.
        **settings: settings of LightGBM instead of those here.
    """
    gbm = {
        "monotone_constraints": list(monotone.values()),
        "monotone_constraints_method": "intermediate",
        "num_leaves": 15,
        "min_data_in_leaf": 5,
        "learning_rate": 0.05,
        "lambda_l2": 5.0,
        "num_boost_round": 300,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,
        "seed": 0,
        "ag_args_fit": {"drop_unique": False},  # a constant column must keep its place among the constraints
        **settings,
    }
    scratch = folder.with_suffix(".fit")
    rows = table[[*monotone, label, weight]]
    with _quiet():
        predictor = _tabular_predictor()(
            label=label,
            path=str(scratch),
            problem_type="regression",
            eval_metric="mean_absolute_error",
            sample_weight=weight,
            verbosity=0,
        )
        predictor.fit(
            rows,
            tuning_data=rows,  # AutoGluon needs rows to stop by; on rows that it learns from it does not stop early
            hyperparameters={"GBM": gbm},
            feature_generator=None,
            fit_weighted_ensemble=False,
            num_bag_folds=0,
            num_stack_levels=0,
            dynamic_stacking=False,
            num_cpus=1,
            num_gpus=0,
        )
        predictor.clone_for_deployment(str(folder))
    shutil.rmtree(scratch)
