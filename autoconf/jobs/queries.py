"""Queries about jobs: the fields that each query needs, and the columns of its answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

from autoconf.jobs.job import (
    BATCHES,
    GPU_MEMORY,
    IMAGES,
    OPTIONAL,
    REQUIRED,
    REQUIRED_OF_JOB,
    TOGETHER,
    Job,
    Workload,
    check_batch,
    read,
    stack_of,
    with_gpu,
)
from autoconf.jobs.values import is_empty, whole_number

NUMBER_GPUS = "number_gpus"
NOTES = "notes"  # the last column of answers, if there are any notes
# Arguments of queries that are not fields of a job.
ARGUMENTS = {NUMBER_GPUS: "GPUs of the job, over all workers; a whole number >= 1"}
# Arguments that may be omitted: how long a run is. A run has either steps, or the tokens of its data and epochs.
RUN_LENGTH = {
    "dataset_tokens": "Tokens of the training data, counted once; a whole number >= 1",
    "epochs": "Passes over the training data, with dataset_tokens; a whole number >= 1, by default 1",
    "steps": "Optimizer steps of the run, instead of dataset_tokens; a whole number >= 1",
}
ALL_ARGUMENTS = {**ARGUMENTS, **RUN_LENGTH}


def check_run_length(fields: Mapping[str, Any]) -> None:
    """Check that a run is not as long as its steps and as its data.

    Raises:
        ValueError: the arguments exclude each other, or one is missing; the message names both.

    >>> check_run_length({"epochs": 3})
    Traceback (most recent call last):
    ValueError: epochs: needs dataset_tokens
    """
    if fields.get("steps") is not None and fields.get("dataset_tokens") is not None:
        raise ValueError("steps and dataset_tokens exclude each other: give one of them")
    if fields.get("epochs") is not None and fields.get("dataset_tokens") is None:
        raise ValueError("epochs: needs dataset_tokens")


@dataclasses.dataclass(frozen=True)
class Query:
    """The fields of the jobs that a query is about, and the columns of its answers.

    >>> largest_batch = Query(("can_recommend", "batch_size", "reason"), batches=())
    >>> largest_batch.answered
    ('batch_size',)
    """

    answers: tuple[str, ...]  # in order, as columns and outputs
    batches: tuple[str, ...] = BATCHES  # a job has exactly one of them
    arguments: tuple[str, ...] = ()  # numbers that the query needs besides the fields of a job
    max_gpus: int = 8  # default of the jobs' ``max_gpus``
    has_nodes: bool = False  # whether ``gpus_per_worker`` matters for a given number of GPUs
    optional_arguments: tuple[str, ...] = ()  # numbers that may be omitted

    # Computed when a query is made: functools.cached_property locks before Python 3.12, and a child forked meanwhile
    # would wait forever.
    # The job's fields that the query answers; a job must omit them.
    answered: tuple[str, ...] = dataclasses.field(init=False, repr=False, compare=False)
    # Every field of a job, and the arguments, in order.
    all_fields: tuple[str, ...] = dataclasses.field(init=False, repr=False, compare=False)
    # Those of them that affect the answer.
    fields: tuple[str, ...] = dataclasses.field(init=False, repr=False, compare=False)
    # The fields and arguments that every job needs, apart from its batch.
    required: tuple[str, ...] = dataclasses.field(init=False, repr=False, compare=False)
    # The fields that a job may omit, with their defaults.
    optional: dict[str, Any] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        answered = tuple(name for name in self.answers if name in Workload.model_fields)
        without = {*answered, *BATCHES} - {*self.batches}
        if "gpu_model" in answered:
            without.add(GPU_MEMORY)
        if "tokens_per_sample" in answered:
            without.add(IMAGES)
        if "workers" not in self.answers:
            without |= {"max_gpus", "even_layouts"} | ({"gpus_per_worker"} if not self.has_nodes else set())
        all_fields = (*Workload.model_fields, *self.arguments, *self.optional_arguments)
        vars(self).update(
            answered=answered,
            all_fields=all_fields,
            fields=tuple(name for name in all_fields if name not in without),
            required=(*(name for name in REQUIRED if name not in answered), *self.arguments),
            optional={
                **OPTIONAL,
                "max_gpus": self.max_gpus,
                **dict.fromkeys(answered),
                **dict.fromkeys(self.optional_arguments),
            },
        )

    def reader(self, field: str) -> Callable[[Any], Any]:
        """The function that reads values of a field or an argument."""
        if field in self.optional_arguments:
            return partial(_optional_number, field)
        return partial(whole_number, field) if field in self.arguments else partial(read, field, optional=self.optional)

    def parse(self, fields: Mapping[str, Any]) -> tuple[Job, dict[str, int]]:
        """Validate the fields of a job, and the query's arguments.

        Raises:
            ValueError: a field is missing, unknown or invalid, is one that the query answers, or fields exclude each
                other; the message names every such field.
        """
        problems, numbers = [], {}
        if GPU_MEMORY in fields:
            fields = with_gpu(fields)
        arguments = (*self.arguments, *self.optional_arguments)
        try:
            job = Job.parse(**{field: value for field, value in fields.items() if field not in arguments})
        except ValueError as error:
            problems.append(str(error))
        for field in (*self.required, *self.optional_arguments):
            if is_empty(fields.get(field)):
                if field in self.required and field not in REQUIRED_OF_JOB:  # ``Job`` already reports those
                    problems.append(f"{field}: is required")
            elif field in arguments:
                try:
                    numbers[field] = whole_number(field, fields[field])
                except ValueError as error:
                    problems.append(str(error))
        if problems:
            raise ValueError("; ".join(problems))
        self._check({**dict(job), **numbers})
        return job, numbers

    def columns_of(self, job: Job, **arguments: Any) -> dict[str, list[Any]]:
        """Convert a job to columns with one row; fields that the job does not set are absent.

        Args:
            job: a job, validated when it was made.
            arguments: arguments of the query.

        Raises:
            ValueError: a field is missing, is one that the query answers, or an argument is invalid.
        """
        fields = {"max_gpus": self.max_gpus} | {field: getattr(job, field) for field in job.model_fields_set}
        missing = [f"{f}: is required" for f in self.required if f not in self.arguments and fields.get(f) is None]
        if missing:
            raise ValueError("; ".join(missing))
        given = {field: value for field, value in arguments.items() if field in self.arguments or not is_empty(value)}
        fields |= {field: whole_number(field, value) for field, value in given.items()}
        self._check(fields)
        return {field: [value] for field, value in fields.items()}

    def _check(self, fields: Mapping[str, Any]) -> None:
        """Check that a job has exactly one batch that the query allows, and no field that the query answers."""
        if "gpu_model" in self.answered and fields.get(GPU_MEMORY) is not None:
            raise ValueError(f"{GPU_MEMORY}: describes a GPU, which is the output of this query; omit it")
        for field in self.answered:
            if fields.get(field) is not None:
                raise ValueError(f"{field}: is the output of this query; omit it")
        if "tokens_per_sample" in self.answered and fields.get(IMAGES) is not None:
            raise ValueError(f"{IMAGES}: is a part of tokens_per_sample, which is the output of this query; omit it")
        check_batch(fields, self.batches)
        if self.optional_arguments:
            check_run_length(fields)

    def contradictions(self, columns: Mapping[str, Sequence[Any]]) -> dict[int, str]:
        """Find rows whose fields, each valid by itself, exclude each other: the reason by the position of the row."""
        together = (*TOGETHER, *self.answered, *self.optional_arguments, GPU_MEMORY, IMAGES)
        present = [field for field in dict.fromkeys(together) if field in columns]
        only_whether = {*BATCHES, *self.answered, *self.optional_arguments, GPU_MEMORY, IMAGES}

        @lru_cache(maxsize=65_536)  # a table has few stacks; only the presence of batches and answered fields matters
        def problem(*values: Any) -> str:
            fields = dict(zip(present, values, strict=True))
            try:
                self._check(fields)
                stack_of(fields)
            except ValueError as error:
                return str(error)
            return ""

        values = ([v is not None or None for v in columns[f]] if f in only_whether else columns[f] for f in present)
        found = enumerate(map(problem, *values))
        return {index: sentence for index, sentence in found if sentence}

    def missing_columns(self, columns: Container[Any]) -> list[str]:
        """List the required columns that a table of jobs lacks.

        >>> MIN_GPUS.missing_columns(["model_name", "method", "gpu_model", "batch_size"])
        ['tokens_per_sample']
        """
        given = {"gpu_model"} if GPU_MEMORY in columns else ()
        missing = [field for field in self.required if field not in columns and field not in given]
        if not self.batches or any(field in columns for field in self.batches):
            return missing
        return [*missing, " or ".join(self.batches)]


def _optional_number(field: str, value: Any) -> int | None:
    return None if is_empty(value) else whole_number(field, value)


_LAYOUT = ("can_recommend", "gpus", "workers", "reason", "outcome")
MIN_GPUS = Query(_LAYOUT)
AVOID_OOM = Query(_LAYOUT, batches=("per_device_train_batch_size",), arguments=(NUMBER_GPUS,), max_gpus=64)
LARGEST_BATCH = Query(
    ("can_recommend", "per_device_train_batch_size", "batch_size", "reason", "outcome"),
    batches=(),
    arguments=(NUMBER_GPUS,),
    has_nodes=True,
)
LARGEST_SAMPLE = Query(
    ("can_recommend", "tokens_per_sample", "reason", "outcome"), arguments=(NUMBER_GPUS,), has_nodes=True
)
GPU_MODEL = Query(
    (
        "can_recommend", "gpu_model", "gpus", "workers", "cost_per_hour", "tokens_per_second", "hours", "cost",
        "cost_per_million_tokens", "rank", "reason", "outcome",
    ),
    optional_arguments=tuple(RUN_LENGTH),
)  # fmt: skip
ESTIMATE = Query(
    (
        "fits", "probability", "peak_memory_gib", "peak_reserved_gib", "needed_memory_gib", "usable_memory_gib",
        "headroom_gib", "weights_gib", "gradients_gib", "optimizer_gib", "gathered_gib", "activations_gib",
        "fragmentation_gib", "reserve_gib", "host_memory_gib", "reason", "outcome",
    ),
    arguments=(NUMBER_GPUS,),
    has_nodes=True,
)  # fmt: skip
THROUGHPUT = Query(
    (
        "fits", "tokens_per_second", "tokens_per_second_low", "tokens_per_second_high", "step_seconds",
        "model_flops_utilization", "limit", "hours", "cost", "reason", "outcome",
    ),
    arguments=(NUMBER_GPUS,),
    has_nodes=True,
    optional_arguments=tuple(RUN_LENGTH),
)  # fmt: skip
PLAN = Query(
    (
        "can_recommend", "gpu_model", "gpus", "workers", "tokens_per_second", "hours", "cost",
        "cost_per_million_tokens", "cost_per_hour", "rank", "reason", "outcome",
    ),
    optional_arguments=tuple(RUN_LENGTH),
)  # fmt: skip
