"""Recommendations as they are asked for: one job or a table of jobs, of whichever versions, checked first."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, overload

import numpy as np
import pandas as pd

from autoconf import own_versions, versions
from autoconf.columns import doubts
from autoconf.errors import IgnoredColumnWarning
from autoconf.own_versions import Models
from autoconf.predictors import Predictor
from autoconf.remedies import CHANGES, remedies
from autoconf.search import Columns, Recommendation, answer, column, pick
from autoconf.versions import DEFAULT
from autoconf.workload import REQUIRED, Workload, contradictions, missing_columns, read

# Jobs answered at once: bounds the memory that candidates take, whatever the table's length.
CHUNK = 50_000


@overload
def recommend(workloads: Workload, model_version: str | None = None, models: Models = None) -> Recommendation: ...
@overload
def recommend(workloads: pd.DataFrame, model_version: str | None = None, models: Models = None) -> pd.DataFrame: ...
def recommend(
    workloads: Workload | pd.DataFrame, model_version: str | None = None, models: Models = None
) -> Recommendation | pd.DataFrame:
    """Recommend the smallest number of GPUs, for one job or for a table of jobs.

    Args:
        workloads: a ``Workload``, or a DataFrame with its fields as columns. Optional columns may be absent and their
            cells empty (None, NaN, NA, blank text); other columns are ignored, with an ``IgnoredColumnWarning`` for
            those that look like a field misspelt or like a setting of the training stack.
        model_version: predictor version for jobs that name none; the newest released one by default.
        models: folder of versions of your own; by default what the environment variable ``AUTOCONF_MODELS`` names.

    Returns:
        A ``Recommendation`` for a ``Workload``; it names the training stack that it is for. For a DataFrame, one with
        the same index and the columns ``can_recommend`` (0 or 1), ``gpus`` (per worker) and ``workers`` (nullable
        integers) and ``reason`` (text, empty when recommended). A row with a value that can never be right gets that
        reason. With "no" go the single changes of the job that would get it a recommendation, and what it then takes.

    Raises:
        TypeError: ``workloads`` is neither.
        ValueError: a required column is missing (``batch_size`` and ``per_device_train_batch_size`` both), a column of
            the job is there twice, the columns have several levels, ``model_version`` cannot be one, or ``models`` is
            no folder.
        AutoConfError: the installation is broken.

    >>> job = Workload(model_name="llama-7b", method="lora", gpu_model="NVIDIA-A100-80GB-PCIe",
    ...                tokens_per_sample=8192, batch_size=16)
    >>> recommend(job)
    Recommendation(can_recommend=1, gpus=2, workers=1, reason='', stack='reference')
    >>> recommend(pd.DataFrame([job.model_dump()])).drop(columns="reason")
       can_recommend  gpus  workers
    0              1     2        1
    """
    if isinstance(workloads, Workload):
        columns = {field: [getattr(workloads, field)] for field in Workload.model_fields}
        return replace(_answer(columns, model_version, models)[0], stack=workloads.stack_name())
    workloads = checked_table(workloads)
    fields = [field for field in Workload.model_fields if field in workloads]
    answers = []
    for start in range(0, max(len(workloads), 1), CHUNK):
        chunk = workloads.iloc[start : start + CHUNK]
        answers.append(_frame(_answer({field: chunk[field].tolist() for field in fields}, model_version, models)))
    return pd.concat(answers).set_axis(workloads.index)


def checked_table(workloads: Any, *others: str) -> pd.DataFrame:
    """A table of jobs with one level of columns, all that jobs need among them.

    Args:
        workloads: what somebody gave as a table.
        others: columns that it must have beside those of jobs.

    Raises:
        TypeError: it is no table.
        ValueError: a column is missing, or of a job's columns one is there twice.
    """
    if not isinstance(workloads, pd.DataFrame):
        raise TypeError(f"workloads: must be a Workload or a pandas DataFrame, got {type(workloads).__name__}")
    if isinstance(workloads.columns, pd.MultiIndex):  # one level of names may come as such, too
        if workloads.columns.nlevels > 1:
            raise ValueError(f"columns: must have one level of names, got {workloads.columns.nlevels}")
        workloads = workloads.set_axis(workloads.columns.get_level_values(0), axis=1)
    twice = [field for field in Workload.model_fields if list(workloads.columns).count(field) > 1]
    if twice:
        raise ValueError(f"{', '.join(twice)}: more than one column of that name")
    missing = [*missing_columns(workloads.columns), *(other for other in others if other not in workloads.columns)]
    if missing:
        raise ValueError(
            f"{', '.join(missing)}: required column missing; the table has {', '.join(map(str, workloads))}"
        )
    for sentence in doubts(name for name in workloads.columns if name not in others):
        warnings.warn(sentence, IgnoredColumnWarning, stacklevel=3)
    return workloads


def _frame(answers: Sequence[Recommendation]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "can_recommend": np.array([a.can_recommend for a in answers], np.int64),
            "gpus": pd.array([a.gpus for a in answers], "Int64"),
            "workers": pd.array([a.workers for a in answers], "Int64"),
            "reason": np.array([a.reason for a in answers], dtype=object),
        }
    )


def _answer(columns: dict[str, list[Any]], default_version: str | None, models: Models) -> list[Recommendation]:
    """Answer jobs given as lists of raw values per field."""
    jobs, problems = valid_jobs(columns, default_version, models)
    answers = [Recommendation(0, reason=problem) for problem in problems]
    for version, indices in by_version(jobs, problems).items():
        found = _recommend(versions.load(version, models), pick(jobs, indices))
        for index, recommendation in zip(indices, found, strict=True):
            answers[index] = recommendation
    return answers


def valid_jobs(
    columns: dict[str, list[Any]], default_version: str | None, models: Models = None
) -> tuple[Columns, list[str]]:
    """Read the fields of jobs given as raw values; and for each job why it can have no answer, or empty text."""
    newest = read("model_version", default_version) or DEFAULT
    problems = [""] * len(columns[REQUIRED[0]])
    jobs = {field: _checked(values, partial(read, field), problems) for field, values in columns.items()}
    fine = [index for index, problem in enumerate(problems) if not problem]
    for index, problem in zip(fine, contradictions(pick(jobs, fine)), strict=True):
        problems[index] = problem
    jobs["model_version"] = [version or newest for version in column(jobs, "model_version")]
    folder = own_versions.folder_of(models) if models is not None else None  # no folder is nobody's row's fault
    asked = {jobs["model_version"][index] for index in fine if not problems[index]}
    unknown = {version: _no_version(version, folder) for version in sorted(asked)}
    for index in fine:
        problems[index] = problems[index] or unknown[jobs["model_version"][index]]
    return jobs, problems


def _no_version(version: str, models: Models) -> str:
    """Why there is no such version; empty text if there is."""
    try:
        versions.place(version, models)
    except ValueError as error:
        return str(error)
    return ""


def by_version(jobs: Columns, problems: Sequence[str]) -> dict[str, list[int]]:
    """The jobs without a problem, by the version that they ask."""
    found: dict[str, list[int]] = {}
    for index, (version, problem) in enumerate(zip(jobs["model_version"], problems, strict=True)):
        if not problem:
            found.setdefault(version, []).append(index)
    return found


def _checked(values: Sequence[Any], check: Callable[[Any], Any], problems: list[str]) -> list[Any]:
    """Check each distinct value once; a bad one leaves its problem behind."""
    seen: dict[Hashable, Any] = {}
    checked = []
    for index, value in enumerate(values):
        key = _key(value)
        if key not in seen:
            try:
                seen[key] = check(value)
            except ValueError as error:
                seen[key] = error
        result = seen[key]
        if isinstance(result, ValueError):
            problems[index] = f"{problems[index]}; {result}" if problems[index] else str(result)
            result = None
        checked.append(result)
    return checked


def _key(value: Any) -> Hashable:
    """Tells values apart that are equal but not equally valid (1, 1.0 and True), and serves those without a hash."""
    try:
        hash(value)
    except Exception:  # a value may be anything, and so may what it raises
        return type(value), id(value)
    return type(value), value


def _recommend(predictor: Predictor, columns: Columns) -> list[Recommendation]:
    """Answer valid jobs by one version; with "no" go the changes that would help."""
    answers = answer(predictor, columns)
    without = [index for index, found in enumerate(answers) if not found.can_recommend]
    if not without:
        return answers
    for index, changes in zip(without, remedies(predictor, pick(columns, without), CHANGES), strict=True):
        sentences = [answers[index].reason, *map(str, changes)]
        answers[index] = Recommendation(0, reason="; ".join(sentences), changes=tuple(changes))
    return answers
