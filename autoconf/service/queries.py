"""The queries of the service: the function of the Python API that answers each one, and its answers as JSON data."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from autoconf.jobs.importers.documents import shortened
from autoconf.jobs.job import BATCHES, NAMES, Workload, choices
from autoconf.jobs.queries import (
    AVOID_OOM,
    ESTIMATE,
    GPU_MODEL,
    LARGEST_BATCH,
    LARGEST_SAMPLE,
    MIN_GPUS,
    NOTES,
    NUMBER_GPUS,
    PLAN,
    THROUGHPUT,
    Query,
)
from autoconf.jobs.tables import check_jobs, earlier_answers, parse_table
from autoconf.jobs.values import is_empty, positive_number
from autoconf.planner.avoid_oom import avoid_oom
from autoconf.planner.estimate import estimate
from autoconf.planner.explanation import explain
from autoconf.planner.gpu_choice import cheapest_gpu
from autoconf.planner.html import explanation_html
from autoconf.planner.known_names import aliases_of
from autoconf.planner.max_size import largest_batch, largest_sample
from autoconf.planner.min_gpus import recommend
from autoconf.planner.plan import plan
from autoconf.planner.results import Estimate, GpuModel, LargestBatch, LargestSample, Plan, Recommendation, Throughput
from autoconf.planner.throughput import throughput
from autoconf.predictor import registry
from autoconf.predictor.user_versions import ModelsFolder


@dataclass(frozen=True)
class ServiceQuery:
    """A query of the service.

    Attributes:
        query: The fields of its jobs and the columns of its answers.
        ask: The function of the Python API that answers it.
        answer_type: The dataclass of an answer.
        summary: What it answers, in one line.
        bounds: Positive numbers that an answer about one job may not exceed, each with its description.
    """

    query: Query
    ask: Callable[..., Any]
    answer_type: type[Any]
    summary: str
    bounds: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def ranked(self) -> bool:
        """Whether an answer is a ranking, which the API returns for tables only."""
        return "rank" in self.query.answers


QUERIES = {
    "recommend": ServiceQuery(MIN_GPUS, recommend, Recommendation, "The minimum number of GPUs for a job"),
    "avoid-oom": ServiceQuery(
        AVOID_OOM, avoid_oom, Recommendation, "Whether a job fits on its GPUs; if not, the next larger number that does"
    ),
    "estimate": ServiceQuery(ESTIMATE, estimate, Estimate, "The memory of each GPU of a job, by part"),
    "largest-batch": ServiceQuery(LARGEST_BATCH, largest_batch, LargestBatch, "The largest batch that fits"),
    "largest-sample": ServiceQuery(LARGEST_SAMPLE, largest_sample, LargestSample, "The longest samples that fit"),
    "throughput": ServiceQuery(
        THROUGHPUT, throughput, Throughput, "The speed of a job on its GPUs, and the time and the cost of a run"
    ),
    "gpu-model": ServiceQuery(
        GPU_MODEL, cheapest_gpu, GpuModel, "GPU types, ranked by the cost of a run or of tokens on the smallest layout"
    ),
    "plan": ServiceQuery(
        PLAN,
        plan,
        Plan,
        "The layouts of a run for which no other one that fits is both faster and cheaper",
        {"deadline_hours": "The longest that the run may take, in hours", "budget": "The most that the run may cost"},
    ),
}
# A job that every query accepts, with the fields that the query answers left out.
_EXAMPLE = {
    "model_name": "Qwen/Qwen2.5-7B-Instruct", "method": "lora", "gpu_model": "H100", "tokens_per_sample": 4096,
    "per_device_train_batch_size": 8, NUMBER_GPUS: 2, "stack": "trl", "steps": 1000,
}  # fmt: skip


def example(query: Query) -> dict[str, Any]:
    """An example of a job for a query.

    >>> [*example(LARGEST_BATCH)]
    ['model_name', 'method', 'gpu_model', 'tokens_per_sample', 'number_gpus', 'stack']
    """
    fields = {*query.required, *query.batches, *query.optional_arguments, "stack"}
    return {field: value for field, value in _EXAMPLE.items() if field in fields}


def answer_job(name: str, fields: Mapping[str, Any], models: ModelsFolder = None) -> dict[str, Any]:
    """Answer one job: its fields, the columns of the answer, the training stack and the notes.

    Args:
        name: One of ``QUERIES``.
        fields: The fields of the job, and the arguments of the query.
        models: Folder of user versions.

    Raises:
        ValueError: A field is missing, unknown or invalid; the message names it.
        AutoConfError: The installation is broken.

    >>> answer_job("recommend", example(MIN_GPUS))["gpus"]
    1
    """
    served = QUERIES[name]
    bounds = {
        bound: positive_number(bound, fields[bound]) for bound in served.bounds if not is_empty(fields.get(bound))
    }
    fields = {field: value for field, value in fields.items() if field not in served.bounds}
    job, numbers = served.query.parse({"model_version": registry.DEFAULT, **fields})
    known = {**served.query.optional, **job.model_dump(exclude_unset=True), **numbers}
    given = {field: known[field] for field in served.query.fields if known[field] is not None}
    after = {"training_stack": job.stack_name()}
    if served.ranked:
        table = pd.DataFrame({field: [value] for field, value in given.items()}, dtype=object)
        ranking = _rows(served.ask(table, models=models, **bounds))
        said = [(row["can_recommend"], row.pop(NOTES, "")) for row in ranking]
        fits = any(recommended for recommended, _ in said)  # then notes on types that do not are of no use
        texts = [text for recommended, text in said if recommended or not fits]
        notes = dict.fromkeys(sentence for text in texts for sentence in text.split("; ") if sentence)
        return {**given, **bounds, **after, "ranking": ranking, NOTES: [*notes]}
    found = served.ask(job, models=models, **numbers)
    answered = {column: getattr(found, column) for column in served.query.answers}
    return {**given, **answered, **after, NOTES: [*found.notes]}


def explain_job(fields: Mapping[str, Any], models: ModelsFolder = None, *, html: bool = False) -> dict[str, Any]:
    """Explain the recommendation for one job.

    Args:
        fields: The fields of the job.
        models: Folder of user versions.
        html: Whether the answer has ``html``, which shows it as in a notebook.

    Raises:
        ValueError: A field is missing, unknown or invalid; the message names it.
        AutoConfError: The installation is broken.
    """
    job, _ = MIN_GPUS.parse({"model_version": registry.DEFAULT, **fields})
    found = explain(job, models=models)
    answered = {column: getattr(found.recommendation, column) for column in MIN_GPUS.answers}
    return {
        **job.model_dump(exclude_none=True),
        **answered,
        "training_stack": found.recommendation.stack,
        "why": found.why,
        "at": [{NUMBER_GPUS: count, **asdict(held)} for count, held in found.at.items()],
        "changes": [{**asdict(change), "sentence": str(change)} for change in found.changes],
        "threshold": found.threshold,
        NOTES: [*found.recommendation.notes],
        **({"html": explanation_html(found)} if html else {}),
    }


def answer_rows(name: str, rows: list[dict[str, Any]], models: ModelsFolder = None) -> dict[str, Any]:
    """Answer a table of jobs given as rows.

    Returns:
        ``answers``, one object for each job, in order; ``gpu-model`` has several for a job, with its position in
        ``job``. An invalid job has the outcome ``bad_value`` and a reason.

    Raises:
        ValueError: A required field is in no row, or a row has an unknown field.
        AutoConfError: The installation is broken.
    """
    served = QUERIES[name]
    fields = dict.fromkeys(field for row in rows for field in row)
    if unknown := [field for field in fields if field not in served.query.all_fields]:
        place = next(index for index, row in enumerate(rows) if unknown[0] in row)
        allowed = ", ".join(served.query.all_fields)
        raise ValueError(f"jobs[{place}].{shortened(unknown[0])}: no such field; the fields are {allowed}")
    table = pd.DataFrame({field: [row.get(field) for row in rows] for field in fields}, dtype=object)
    answers = served.ask(table, models=models)
    return {
        "answers": [{"job": index, **row} for index, row in zip(answers.index.tolist(), _rows(answers), strict=True)]
    }


def answer_csv(name: str, data: bytes, most: int, models: ModelsFolder = None) -> str:
    """Answer a table of jobs in CSV: the same columns, with the output columns appended.

    Args:
        name: One of ``QUERIES``.
        data: The table; its cells are checked before any job is answered.
        most: The most rows.
        models: Folder of user versions.

    Raises:
        BadInput: The text is not a table, or a cell is invalid; the message names the line.
        TooManyRows: It has more rows.
        AutoConfError: The installation is broken.
    """
    served = QUERIES[name]
    table = parse_table(io.BytesIO(data), "body")
    check_count(len(table), most)
    check_jobs(table, "body", served.query)
    earlier = earlier_answers(table, served.query)
    if "rank" in earlier:  # the table has several rows per job; keep one
        table = table[table["rank"] == "1"]
    table = table.drop(columns=earlier)
    fields = [field for field in served.query.all_fields if field in table]
    answers = served.ask(table[fields], models=models)
    if NOTES in table:
        answers = answers.drop(columns=NOTES, errors="ignore")
    jobs = table.loc[answers.index].reset_index(drop=True)
    found: str = pd.concat([jobs, answers.reset_index(drop=True)], axis=1).to_csv(index=False, lineterminator="\n")
    return found


class TooManyRows(ValueError):
    """A table with more rows than the service answers at once."""


def check_count(rows: int, most: int) -> None:
    """Check the number of rows of a table.

    Raises:
        TooManyRows: There are more.

    >>> check_count(3, most=2)
    Traceback (most recent call last):
    autoconf.service.queries.TooManyRows: jobs: 3 rows, but at most 2 are answered at once
    """
    if rows > most:
        raise TooManyRows(f"jobs: {rows} rows, but at most {most} are answered at once")


def _rows(answers: pd.DataFrame) -> list[dict[str, Any]]:
    """Answers as objects; absent values are ``None``."""
    records = answers.astype(object).to_dict("records")
    return [{str(column): None if pd.isna(value) else value for column, value in row.items()} for row in records]


def known_names(models: ModelsFolder = None) -> dict[str, Any]:
    """The names that a form suggests: versions, and the models, methods, GPU types and choices of the default one."""
    domain = registry.card(registry.DEFAULT).domain
    named = [field for field in Workload.model_fields if field not in (*NAMES, *BATCHES)]
    return {
        "model_version": registry.known(models) if models is not None else [*registry.RELEASED],
        "model_name": sorted({name for own, more in aliases_of(domain).items() for name in (own, *more)}),
        "method": [*domain.methods],
        "gpu_model": [*domain.gpus],
        **{field: [*found] for field in named if (found := choices(field))},
    }
