"""What can be asked of jobs: the fields that each query needs, and the columns of its answers."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

from autoconf.jobs.job import (
    _OF_EVERY_JOB,
    BATCHES,
    OPTIONAL,
    REQUIRED,
    TOGETHER,
    Job,
    Workload,
    check_together,
    read,
)
from autoconf.jobs.values import is_empty, whole_number

NUMBER_GPUS = "number_gpus"
BESIDE = {NUMBER_GPUS: "GPUs that the job gets, over all workers; a whole number >= 1"}


@dataclass(frozen=True)
class Query:
    """What is asked of jobs, which decides the fields that they have.

    >>> largest_batch = Query(("can_recommend", "batch_size", "reason"), batches=())
    >>> largest_batch.asked
    ('batch_size',)
    """

    answers: tuple[str, ...] = ("can_recommend", "gpus", "workers", "reason")  # in order, as columns and outputs
    batches: tuple[str, ...] = BATCHES  # of which a job has one
    beside: tuple[str, ...] = ()  # numbers that are asked about and are no field of a job
    max_gpus: int = 8  # of jobs that do not say

    @cached_property
    def asked(self) -> tuple[str, ...]:
        """The fields that the answer tells, which a job leaves out."""
        return tuple(field for field in self.answers if field in Workload.model_fields)

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """The fields that make a difference to the answer, and the numbers beside them, in order."""
        without = {*self.asked, *BATCHES} - {*self.batches}
        if "workers" not in self.answers:
            without |= {"gpus_per_worker", "max_gpus"}
        return (*(field for field in Workload.model_fields if field not in without), *self.beside)

    @cached_property
    def required(self) -> tuple[str, ...]:
        """The fields and numbers that no job may leave out, whatever its batch."""
        return (*(field for field in REQUIRED if field not in self.asked), *self.beside)

    @cached_property
    def optional(self) -> dict[str, Any]:
        """The fields that a job may leave out, with their defaults."""
        return {**OPTIONAL, "max_gpus": self.max_gpus, **dict.fromkeys(self.asked)}

    def reader(self, field: str) -> Callable[[Any], Any]:
        """What reads the values of a field or a number of this question's jobs."""
        return partial(whole_number, field) if field in self.beside else partial(read, field, optional=self.optional)

    def parse(self, fields: Mapping[str, Any]) -> tuple[Job, dict[str, int]]:
        """Validate the fields of one of this question's jobs, and the numbers beside it.

        Raises:
            ValueError: any is missing, unknown, can never be right or is what is asked, or fields exclude each other;
                the message names every such field.
        """
        numbers: dict[str, int] = {}
        problems = []
        try:
            job = Job.parse(**{field: value for field, value in fields.items() if field not in self.beside})
        except ValueError as error:
            problems.append(str(error))
        for field in self.required:
            if is_empty(fields.get(field)):
                if field not in _OF_EVERY_JOB:  # which ``Job`` has named
                    problems.append(f"{field}: is required")
            elif field in self.beside:
                try:
                    numbers[field] = whole_number(field, fields[field])
                except ValueError as error:
                    problems.append(str(error))
        if problems:
            raise ValueError("; ".join(problems))
        self.fields_of(job)
        return job, numbers

    def fields_of(self, job: Job) -> dict[str, Any]:
        """The fields of a job, which must be one of whom this can be asked.

        Raises:
            ValueError: a field is missing, or is one that is asked; the message names it.
        """
        fields = {**self.optional, **{field: getattr(job, field) for field in job.model_fields_set}}
        missing = [f"{field}: is required" for field in self.required if field not in (*fields, *self.beside)]
        if missing:
            raise ValueError("; ".join(missing))
        check_together(fields, self.batches, self.asked)
        return fields


MIN_GPUS = Query()
AVOID_OOM = Query(batches=("per_device_train_batch_size",), beside=(NUMBER_GPUS,), max_gpus=64)
LARGEST_BATCH = Query(
    ("can_recommend", "per_device_train_batch_size", "batch_size", "reason"), batches=(), beside=(NUMBER_GPUS,)
)
LARGEST_SAMPLE = Query(("can_recommend", "tokens_per_sample", "reason"), beside=(NUMBER_GPUS,))
GPU_MODEL = Query(("can_recommend", "gpu_model", "gpus", "workers", "cost_per_hour", "rank", "reason"))
ESTIMATE = Query(
    (
        "fits", "probability", "peak_memory_gib", "needed_memory_gib", "usable_memory_gib", "headroom_gib",
        "weights_gib", "gradients_gib", "optimizer_gib", "gathered_gib", "activations_gib", "reserve_gib", "reason",
    ),
    beside=(NUMBER_GPUS,),
)  # fmt: skip


def contradictions(columns: Mapping[str, Sequence[Any]], question: Query = MIN_GPUS) -> list[str]:
    """Why the fields of each of some jobs do not go together, as ``check_together`` has it; empty text if they do."""
    present = [field for field in dict.fromkeys((*TOGETHER, *question.asked)) if field in columns]
    only_whether = {*BATCHES, *question.asked}

    @lru_cache(maxsize=65_536)  # a table has few distinct stacks; of a batch it counts only whether there is one
    def problem(*values: Any) -> str:
        try:
            check_together(dict(zip(present, values, strict=True)), question.batches, question.asked)
        except ValueError as error:
            return str(error)
        return ""

    values = ([v is not None or None for v in columns[f]] if f in only_whether else columns[f] for f in present)
    return [problem(*job) for job in zip(*values, strict=True)]


def missing_columns(columns: Container[Any], question: Query = MIN_GPUS) -> list[str]:
    """The columns that a table of jobs needs and lacks.

    >>> missing_columns(["model_name", "method", "gpu_model", "batch_size"])
    ['tokens_per_sample']
    """
    missing = [field for field in question.required if field not in columns]
    if not question.batches or any(field in columns for field in question.batches):
        return missing
    return [*missing, " or ".join(question.batches)]
