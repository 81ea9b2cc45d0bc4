"""Recommendations as they are asked for: one job or a table of jobs, of whichever versions, checked first."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, get_type_hints

import numpy as np
import pandas as pd

from autoconf.errors import IgnoredColumnWarning
from autoconf.jobs.column_hints import doubts
from autoconf.jobs.job import REQUIRED, Job, Workload, read
from autoconf.jobs.queries import MIN_GPUS, Query, contradictions, missing_columns
from autoconf.jobs.values import whole_number
from autoconf.planner.domain import Columns, column, pick
from autoconf.predictor import registry, user_versions
from autoconf.predictor.predictor import Predictor
from autoconf.predictor.registry import DEFAULT
from autoconf.predictor.user_versions import Models

# Jobs answered at once: bounds the memory that candidates take, whatever the table's length.
CHUNK = 50_000


# What a version says of valid jobs, and what stands for an answer where there is only a problem.
OfVersion = Callable[[Predictor, Columns], Sequence[Any]]
NoAnswer = Callable[[str], Any]


def ask(
    question: Query, kind: Any, jobs: Any, model_version: str | None, of_version: OfVersion, models: Models = None,
    **beside: Any,
) -> Any:  # fmt: skip
    """Answer a question about one job or a table of jobs: the one road that all of them take.

    Args:
        question: what is asked.
        kind: what an answer is: a dataclass with the question's answers as fields, ``reason`` among them.
        jobs: a job or a DataFrame.
        model_version: version for jobs that name none.
        of_version: answers valid jobs by a loaded version.
        models: folder of a user's own versions.
        beside: the question's numbers, of one job; they are columns of a table.

    Returns:
        An answer, or a table of answers with the same index.

    Raises:
        TypeError: ``jobs`` is neither.
        ValueError: a field or column is missing, can never be right or is what is asked.
    """
    if isinstance(jobs, Job):
        return answer_of_one(
            question, jobs, model_version, of_version, lambda problem: kind(reason=problem), models, **beside
        )
    table = checked_table(jobs, question, stacklevel=4, **beside)
    chunks = answers_of_table(question, table, model_version, of_version, lambda problem: kind(reason=problem), models)
    return pd.concat([frame(chunk, kind, question) for chunk in chunks]).set_axis(table.index)


def answer_of_one(
    question: Query, job: Job, model_version: str | None, of_version: OfVersion, none: NoAnswer,
    models: Models = None, **beside: Any,
) -> Any:  # fmt: skip
    """The answer about one job; arguments as ``ask`` has them, and ``none`` makes an answer of a problem."""
    columns = {field: [value] for field, value in question.fields_of(job).items()}
    columns |= {field: [whole_number(field, value)] for field, value in beside.items()}
    return _answers(question, columns, model_version, of_version, none, models)[0]


def answers_of_table(
    question: Query, table: pd.DataFrame, model_version: str | None, of_version: OfVersion, none: NoAnswer,
    models: Models = None, chunk: int = CHUNK,
) -> Iterator[list[Any]]:  # fmt: skip
    """The answers about a checked table of jobs, for at most ``chunk`` jobs at a time; at least one list."""
    fields = [field for field in (*Workload.model_fields, *question.beside) if field in table]
    for start in range(0, max(len(table), 1), chunk):
        jobs = table.iloc[start : start + chunk]
        columns = {field: jobs[field].tolist() for field in fields}
        yield _answers(question, columns, model_version, of_version, none, models)


def _answers(
    question: Query, columns: Columns, default_version: str | None, of_version: OfVersion, none: NoAnswer,
    models: Models,
) -> list[Any]:  # fmt: skip
    """Answer jobs given as lists of raw values per field."""
    jobs, problems = valid_jobs(columns, default_version, question, models)
    answers = [none(problem) for problem in problems]
    for version, indices in by_version(jobs, problems).items():
        found = of_version(registry.load(version, models), pick(jobs, indices))
        for index, one in zip(indices, found, strict=True):
            answers[index] = one
    return answers


def checked_table(workloads: Any, question: Query = MIN_GPUS, *, stacklevel: int = 3, **beside: Any) -> pd.DataFrame:
    """A table of jobs with one level of columns, all that jobs need among them.

    Args:
        workloads: what somebody gave as a table.
        question: what is asked of the jobs.
        stacklevel: of warnings, to whoever asked.
        beside: the question's numbers, which must not be given: a table has them as columns.

    Raises:
        TypeError: it is no table.
        ValueError: a column is missing, or of a job's columns one is there twice.
    """
    if not isinstance(workloads, pd.DataFrame):
        raise TypeError(f"workloads: must be a Workload or a pandas DataFrame, got {type(workloads).__name__}")
    for field, value in beside.items():
        if value is not None:
            raise ValueError(f"{field}: is a column of a table of jobs")
    if isinstance(workloads.columns, pd.MultiIndex):  # one level of names may come as such, too
        if workloads.columns.nlevels > 1:
            raise ValueError(f"columns: must have one level of names, got {workloads.columns.nlevels}")
        workloads = workloads.set_axis(workloads.columns.get_level_values(0), axis=1)
    known = (*Workload.model_fields, *question.beside)
    twice = [field for field in known if list(workloads.columns).count(field) > 1]
    if twice:
        raise ValueError(f"{', '.join(twice)}: more than one column of that name")
    missing = missing_columns(workloads.columns, question)
    if missing:
        raise ValueError(
            f"{', '.join(missing)}: required column missing; the table has {', '.join(map(str, workloads))}"
        )
    for sentence in doubts(workloads.columns, question):
        warnings.warn(sentence, IgnoredColumnWarning, stacklevel=stacklevel)
    return workloads


# How a field of an answer is kept as a column.
_DTYPES: dict[Any, Any] = {int: np.int64, int | None: "Int64", float | None: np.float64}


def frame(answers: Sequence[Any], kind: type, question: Query) -> pd.DataFrame:
    """Answers of one kind as a table, with the columns that the question's answers have."""
    types = get_type_hints(kind)
    columns = {name: ([getattr(one, name) for one in answers], _DTYPES.get(types[name])) for name in question.answers}
    return pd.DataFrame(
        {
            name: pd.array(values, dtype) if dtype == "Int64" else np.array(values, dtype or object)
            for name, (values, dtype) in columns.items()
        }
    )


def valid_jobs(
    columns: dict[str, list[Any]], default_version: str | None, question: Query = MIN_GPUS, models: Models = None
) -> tuple[Columns, list[str]]:
    """Read the fields of jobs given as raw values; and for each job why it can have no answer, or empty text."""
    newest = read("model_version", default_version) or DEFAULT
    problems = [""] * len(columns[REQUIRED[0]])
    jobs = {field: _checked(values, question.reader(field), problems) for field, values in columns.items()}
    fine = [index for index, problem in enumerate(problems) if not problem]
    for index, problem in zip(fine, contradictions(pick(jobs, fine), question), strict=True):
        problems[index] = problem
    jobs.setdefault("max_gpus", [question.max_gpus] * len(problems))
    jobs["model_version"] = [version or newest for version in column(jobs, "model_version")]
    folder = user_versions.folder_of(models) if models is not None else None  # no folder is nobody's row's fault
    asked = {jobs["model_version"][index] for index in fine if not problems[index]}
    unknown = {version: _no_version(version, folder) for version in sorted(asked)}
    for index in fine:
        problems[index] = problems[index] or unknown[jobs["model_version"][index]]
    return jobs, problems


def _no_version(version: str, models: Models) -> str:
    """Why there is no such version; empty text if there is."""
    try:
        registry.place(version, models)
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
