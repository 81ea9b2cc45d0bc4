"""Run a query for one job or for a table of jobs, with the version that each job names."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar, cast, get_type_hints, overload

import numpy as np
import pandas as pd

from autoconf.errors import IgnoredColumnWarning
from autoconf.jobs.column_hints import hints
from autoconf.jobs.job import GPU_MEMORY, REQUIRED_OF_JOB, Job, read, with_gpu
from autoconf.jobs.queries import NOTES, Query
from autoconf.planner.defaults import DECIDING, decisive_defaults
from autoconf.planner.domain import JobColumns, Problems, columns_of, pick
from autoconf.planner.notes import Notes, notes_on
from autoconf.planner.predictors import Answering, answering
from autoconf.planner.results import Problem, Recommendation
from autoconf.predictor import registry, user_versions
from autoconf.predictor.predictor import Predictor
from autoconf.predictor.registry import DEFAULT
from autoconf.predictor.user_versions import ModelsFolder, NoModelsFolder

# Jobs answered at once, which bounds the memory of candidates for tables of any length.
CHUNK = 50_000

Answer = TypeVar("Answer")
Answer_co = TypeVar("Answer_co", covariant=True)


@dataclass(frozen=True)
class Solver(Generic[Answer]):
    """A query with the function that answers it.

    Args:
        query: the fields of its jobs and the columns of its answers.
        answer_type: the dataclass of an answer.
        solve: the function that answers valid jobs with a loaded version, one answer for each job.
        brief: a faster function with the same results but without explanations, if there is one.
    """

    query: Query
    answer_type: Callable[..., Any]
    solve: Callable[[Predictor, JobColumns], list[Answer]]
    brief: Callable[[Predictor, JobColumns], list[Answer]] | None = None

    def refuse(self, problem: Problem) -> Answer:
        """Make the answer about a job with a problem."""
        answer: Answer = self.answer_type(outcome=problem.outcome, reason=problem.reason)
        return answer

    def of_job(self, job: Job, model_version: str | None, models: ModelsFolder = None, **arguments: Any) -> Answer:
        """Answer one job.

        Args:
            job: a job, validated when it was made.
            model_version: version for a job without one; by default the newest released one.
            models: folder of user versions.
            arguments: the arguments of the query.

        Raises:
            ValueError: a field is missing or is one that the query answers, or an argument is invalid.
        """
        columns, problems = self.columns_of(job, model_version, models, **arguments)
        (answer,) = self._answers(columns, problems, models)
        if problems or columns.keys() >= DECIDING:
            return answer
        (found,) = answering(registry.load(columns["model_version"][0], models), columns["model_name"], [0])
        if found.problem:
            return answer
        return self.noted(answer, decisive_defaults(found.predictor, columns, self._briefly, self.best(answer)))

    def _briefly(self, predictor: Predictor, columns: JobColumns) -> list[Any]:
        return [self.best(answer) for answer in (self.brief or self.solve)(predictor, columns)]

    def best(self, answer: Answer) -> Any:
        """The main answer; for a ranking, its first entry."""
        return answer

    def columns_of(
        self, job: Job, model_version: str | None, models: ModelsFolder = None, **arguments: Any
    ) -> tuple[JobColumns, Problems]:
        """Convert one job to columns with its version; an unknown version is a problem."""
        return _with_versions(self.query.columns_of(job, **arguments), {}, model_version, models, ValueError)

    def of_table(
        self, table: pd.DataFrame, model_version: str | None, models: ModelsFolder = None, chunk: int | None = None
    ) -> Iterator[list[Answer]]:
        """Answer a checked table of jobs, at most ``chunk`` jobs at a time; yield at least one list."""
        chunk = chunk or CHUNK
        fields = [field for field in self.query.all_fields if field in table]
        for start in range(0, max(len(table), 1), chunk):
            jobs = table.iloc[start : start + chunk]
            columns, problems = read_columns({field: jobs[field].tolist() for field in fields}, self.query)
            yield self._answers(*_with_versions(columns, problems, model_version, models), models)

    def of_either(
        self, jobs: Any, model_version: str | None, models: ModelsFolder = None, **arguments: Any
    ) -> Answer | pd.DataFrame:
        """Answer one job with an object, or a table of jobs with a table that has the same index.

        Raises:
            TypeError: ``jobs`` is neither.
            ValueError: a field or column is missing, invalid or one that the query answers.
        """
        if isinstance(jobs, Job):
            return self.of_job(jobs, model_version, models, **arguments)
        table = checked_table(jobs, self.query, stacklevel=4, **arguments)
        chunks = self.of_table(table, model_version, models)
        return joined([frame(chunk, self.answer_type, self.query) for chunk in chunks]).set_axis(table.index)

    def _answers(self, columns: JobColumns, problems: Problems, models: ModelsFolder) -> list[Answer]:
        answers: list[Any] = [None] * len(columns["model_version"])
        for index, problem in problems.items():
            answers[index] = self.refuse(problem)
        for version, indices in _by_version(columns["model_version"], problems).items():
            names = [columns["model_name"][index] for index in indices]
            for some in answering(registry.load(version, models), names, indices):
                for index, found in zip(some.positions, self._of(some, columns), strict=True):
                    answers[index] = found
        return answers

    def _of(self, some: Answering, columns: JobColumns) -> list[Answer]:
        """Answer the jobs of one predictor."""
        if some.problem is not None:
            return [self.refuse(some.problem)] * len(some.positions)
        all_jobs = len(some.positions) == len(columns["model_name"])
        found = self.answers(some.predictor, columns if all_jobs else pick(columns, some.positions))
        return [self.noted(answer, (some.note,)) for answer in found] if some.note else found

    def answers(self, predictor: Predictor, columns: JobColumns) -> list[Answer]:
        """Answer valid jobs with one version, with notes on each answer."""
        found = zip(self.solve(predictor, columns), notes_on(predictor, columns), strict=True)
        return [self.noted(answer, notes) if notes else answer for answer, notes in found]

    def noted(self, answer: Answer, notes: Notes) -> Answer:
        """Add notes to an answer."""
        one: Any = answer
        found: Answer = replace(one, notes=tuple(dict.fromkeys((*one.notes, *notes))))
        return found


class LayoutSolver(Solver[Recommendation]):
    """A solver of layouts: answers name the training stack of one job, and what jobs that offload take on hosts."""

    def answers(self, predictor: Predictor, columns: JobColumns) -> list[Recommendation]:
        found = super().answers(predictor, columns)
        offloads = zip(*columns_of(columns, ("offload", "gradient_checkpointing")), strict=True)
        return [
            self.noted(one, (_on_host(one),)) if one.host_memory_gib and (offload or way == "offloaded") else one
            for one, (offload, way) in zip(found, offloads, strict=True)
        ]

    def of_job(
        self, job: Job, model_version: str | None, models: ModelsFolder = None, **arguments: Any
    ) -> Recommendation:
        return replace(super().of_job(job, model_version, models, **arguments), stack=job.stack_name())


def _on_host(found: Recommendation) -> str:
    which = "the" if found.workers == 1 else "each"
    return f"the job takes {found.host_memory_gib:.1f} GiB of the host's memory on {which} worker"


class OnGpus(Protocol[Answer_co]):
    """The type of a query with a number of GPUs, about one job or a table with the column ``number_gpus``."""

    @overload
    def __call__(
        self, jobs: Job, /, number_gpus: int, model_version: str | None = None, models: ModelsFolder = None
    ) -> Answer_co: ...

    @overload
    def __call__(
        self, jobs: pd.DataFrame, /, number_gpus: None = None, model_version: str | None = None,
        models: ModelsFolder = None,
    ) -> pd.DataFrame: ...  # fmt: skip


def on_gpus(answer_type: type[Answer]) -> Callable[[Callable[..., Answer | pd.DataFrame]], OnGpus[Answer]]:
    """Declare the overloaded type of a query with a number of GPUs; the function itself does not change."""
    return lambda function: cast(OnGpus[Answer], function)


def checked_table(workloads: Any, query: Query, *, stacklevel: int = 3, **arguments: Any) -> pd.DataFrame:
    """Check the columns of a table of jobs, and return the table with one level of columns.

    Args:
        workloads: the user's table.
        query: the query about the jobs.
        stacklevel: stack level of warnings, so that they name the line that called the query.
        arguments: the arguments of the query; they must be ``None``, because a table has them as columns.

    Raises:
        TypeError: ``workloads`` is not a DataFrame.
        ValueError: a column is missing, or a field has two columns.
    """
    if not isinstance(workloads, pd.DataFrame):
        raise TypeError(f"workloads: must be a Workload or a pandas DataFrame, got {type(workloads).__name__}")
    for field, value in arguments.items():
        if value is not None:
            raise ValueError(f"{field}: is a column of a table of jobs")
    if isinstance(workloads.columns, pd.MultiIndex):  # a MultiIndex may have one level
        if workloads.columns.nlevels > 1:
            raise ValueError(f"columns: must have one level of names, got {workloads.columns.nlevels}")
        workloads = workloads.set_axis(workloads.columns.get_level_values(0), axis=1)
    names = list(workloads.columns)
    twice = [field for field in query.all_fields if names.count(field) > 1]
    if twice:
        raise ValueError(f"{', '.join(twice)}: more than one column of that name")
    missing = query.missing_columns(workloads.columns)
    if missing:
        raise ValueError(
            f"{', '.join(missing)}: required column missing; the table has {', '.join(map(str, workloads))}"
        )
    for sentence in hints(names, query):
        warnings.warn(sentence, IgnoredColumnWarning, stacklevel=stacklevel)
    return workloads


# The dtype of a column of answers, by the type of the field.
_DTYPES: dict[Any, Any] = {int: np.int64, int | None: "Int64", float | None: np.float64}


def frame(answers: Sequence[Any], kind: Any, query: Query) -> pd.DataFrame:
    """Convert answers of one kind to a table with the query's columns, and ``notes`` if there are any."""
    types = get_type_hints(kind)
    columns = {name: ([getattr(one, name) for one in answers], _DTYPES.get(types[name])) for name in query.answers}
    if any(one.notes for one in answers):
        columns[NOTES] = (["; ".join(one.notes) for one in answers], None)
    return pd.DataFrame(
        {
            name: pd.array(values, dtype) if dtype == "Int64" else np.array(values, dtype or object)
            for name, (values, dtype) in columns.items()
        }
    )


def joined(chunks: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Concatenate chunks of answers; chunks without notes lack that column."""
    table = pd.concat(chunks)
    return table.fillna({NOTES: ""}) if NOTES in table else table


def read_columns(columns: dict[str, list[Any]], query: Query) -> tuple[JobColumns, Problems]:
    """Read the raw values of a table, each distinct value once, and find the jobs with invalid values."""
    sentences: dict[int, list[str]] = {}
    if GPU_MEMORY in columns and "gpu_model" in query.required:
        columns = {**columns, "gpu_model": _gpu_models(columns)}
    jobs = {field: _read_column(values, query.reader(field), sentences) for field, values in columns.items()}
    problems = {index: Problem("bad_value", "; ".join(found)) for index, found in sentences.items()}
    count = len(jobs[REQUIRED_OF_JOB[0]])
    jobs.setdefault("max_gpus", [query.max_gpus] * count)
    sound = [index for index in range(count) if index not in problems]
    for position, sentence in query.contradictions(pick(jobs, sound) if problems else jobs).items():
        problems[sound[position]] = Problem("bad_value", sentence)
    return jobs, problems


def _gpu_models(columns: dict[str, list[Any]]) -> list[Any]:
    """The types of GPUs of a table; a GPU that is given by its memory alone has a name, too."""
    memory = columns[GPU_MEMORY]
    given = zip(columns.get("gpu_model", [None] * len(memory)), memory, strict=True)
    return [with_gpu({"gpu_model": gpu, GPU_MEMORY: gib})["gpu_model"] for gpu, gib in given]


def _read_column(values: Sequence[Any], reader: Callable[[Any], Any], sentences: dict[int, list[str]]) -> list[Any]:
    """Read a column; an invalid value becomes ``None``, and its message is added to those of the job."""
    known: dict[Hashable, Any] = {}
    found = []
    for index, value in enumerate(values):
        key = _key(value)
        if key not in known:
            try:
                known[key] = reader(value)
            except ValueError as error:
                known[key] = error
        result = known[key]
        if isinstance(result, ValueError):
            sentences.setdefault(index, []).append(str(result))
            result = None
        found.append(result)
    return found


def _key(value: Any) -> Hashable:
    """A cache key that distinguishes equal values of different type (1, 1.0 and True) and allows unhashable ones."""
    try:
        hash(value)
    except Exception:  # a value may be any object, and its hash may raise any exception
        return type(value), id(value)
    return type(value), value


def _with_versions(
    jobs: JobColumns,
    problems: Problems,
    default: str | None,
    models: ModelsFolder,
    row_errors: type[Exception] | tuple[type[Exception], ...] = (ValueError, NoModelsFolder),
) -> tuple[JobColumns, Problems]:
    """Give jobs without a version the default one; an unknown version becomes a problem of its job.

    Args:
        jobs: columns of jobs.
        problems: the problems that jobs already have.
        default: version for jobs without one; by default the newest released one.
        models: folder of user versions.
        row_errors: the exceptions of ``registry.place`` that count as an unknown version.
    """
    newest = DEFAULT if default is None else read("model_version", default) or DEFAULT
    named = jobs.get("model_version", [None] * len(jobs[REQUIRED_OF_JOB[0]]))
    versions = [version or newest for version in named]
    folder = user_versions.folder_of(models) if models is not None else None  # a bad folder raises for the whole table
    unknown: dict[str, Problem] = {}
    for version in {version for index, version in enumerate(versions) if index not in problems}:
        try:
            registry.place(version, folder)
        except row_errors as error:
            unknown[version] = Problem("bad_value", str(error))
    if unknown:
        found = {index: unknown[version] for index, version in enumerate(versions) if version in unknown}
        problems = found | problems
    return {**jobs, "model_version": versions}, problems


def _by_version(versions: Sequence[str], problems: Problems) -> dict[str, list[int]]:
    """The positions of the jobs without a problem, by version."""
    found: dict[str, list[int]] = {}
    for index, version in enumerate(versions):
        if index not in problems:
            found.setdefault(version, []).append(index)
    return found
