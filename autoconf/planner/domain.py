"""Look jobs up in a version's domain: jobs inside it become arrays, the others get a reason."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from autoconf.jobs.job import GPU_MEMORY, HOST_LIMIT, OPTIONAL, REQUIRED, STACK_FIELDS, stack_of
from autoconf.jobs.model_names import ModelNames
from autoconf.jobs.presets import SETTINGS, training_stack
from autoconf.jobs.values import LARGEST_NUMBER
from autoconf.memory.candidates import Candidates
from autoconf.memory.model import StackMemory
from autoconf.memory.units import Booleans, Floats, Integers, Unsupported
from autoconf.memory.version_1 import MemoryTable
from autoconf.planner import hardware
from autoconf.planner.given_gpus import given_gpus
from autoconf.planner.images import Images, images_of, with_images
from autoconf.planner.known_names import model_names_of, names_of
from autoconf.planner.results import Problem
from autoconf.predictor.predictor import Predictor

Answer = TypeVar("Answer")
JobColumns = dict[str, list[Any]]  # a field of valid jobs -> its value for each job; an absent field has its default
Problems = dict[int, Problem]  # the problems of jobs, by position; jobs without a problem are absent


@dataclass(frozen=True)
class JobArrays:
    """Jobs inside a version's domain; all arrays have shape (jobs,)."""

    rows: Integers  # row of each job in the version's memory model
    usable_gib: Floats
    tokens_per_sample: Integers
    batch_size: Integers  # over all GPUs, or on each GPU
    per_device: Booleans  # whether ``batch_size`` is the batch on each GPU
    gpus_per_worker: Integers
    min_gpus: Integers  # fewest to consider
    max_gpus: Integers  # most to consider
    even_layouts: Booleans  # whether only powers of two and full workers are considered
    max_tokens_per_sample: Integers  # limit of the domain, or of the model's learned positions
    host_limit_gib: Floats | None = None  # memory of the host of one worker; ``None`` if no job has a limit

    def can_split(self, counts: Integers, max_batch_size: int) -> Booleans:
        """Whether a job's batch can be split over each number of GPUs, shape (jobs, counts)."""
        batch_size = self.batch_size[:, None]
        return np.where(self.per_device[:, None], batch_size * counts <= max_batch_size, self.divisible(counts))

    def divisible(self, counts: Integers) -> Booleans:
        """Whether each number divides a job's batch size, shape (jobs, counts)."""
        distinct, places = np.unique(self.batch_size, return_inverse=True)  # many jobs have the same
        found: Booleans = (distinct[:, None] % counts == 0)[places]
        return found

    def tokens_per_gpu(self, which: Integers, gpus: Integers) -> Floats:
        """Tokens of a micro-batch on each GPU, for some of the jobs, each on its number of GPUs; shape (which,)."""
        batch_size = self.batch_size[which]
        return np.where(self.per_device[which], batch_size, batch_size / gpus) * self.tokens_per_sample[which]

    def subset(self, which: Integers) -> JobArrays:
        """Select jobs by position."""
        arrays: list[Any] = [getattr(self, field.name) for field in fields(self)]
        picked: list[Any] = [None if array is None else array[which] for array in arrays]
        return JobArrays(*picked)

    def candidates(self, memory: MemoryTable | StackMemory, which: Integers, gpus: Integers) -> Candidates:
        """Some of the jobs, each on its number of GPUs.

        Args:
            memory: the memory model of the version.
            which: the position of each job, shape (which,).
            gpus: numbers of GPUs, >= 1, shape (which,).
        """
        arrays = self.rows[which], gpus, self.tokens_per_gpu(which, gpus), self.usable_gib[which]
        on_worker = gpus // workers(gpus, self.gpus_per_worker[which])
        limit = None if self.host_limit_gib is None else self.host_limit_gib[which]
        return Candidates(memory, *arrays, on_worker, limit)


@dataclass(frozen=True)
class Placed:
    """The result of a lookup: arrays of the jobs inside the domain, and the problems of the others."""

    jobs: JobArrays
    positions: Integers  # positions of ``jobs`` among all jobs
    problems: Problems

    def without(self, problems: Problems) -> Placed:
        """Move more jobs from ``jobs`` to ``problems``.

        Args:
            problems: the new problems, by position among ``jobs``.
        """
        if not problems:
            return self
        fine = np.array([index for index in range(len(self.positions)) if index not in problems], np.int64)
        found = {int(self.positions[index]): problem for index, problem in problems.items()}
        return Placed(self.jobs.subset(fine), self.positions[fine], self.problems | found)

    def answers(self, found: Iterable[Answer], refused: Callable[..., Answer]) -> list[Answer]:
        """Merge the answers of all jobs.

        Args:
            found: the answers of ``jobs``.
            refused: the function that makes an answer from an ``outcome`` and a ``reason``.
        """
        if not self.problems:
            return list(found)
        count, rest = len(self.positions) + len(self.problems), iter(found)
        return [
            refused(outcome=problem.outcome, reason=problem.reason) if problem else next(rest)
            for problem in map(self.problems.get, range(count))
        ]


def pick(columns: JobColumns, indices: Sequence[int]) -> JobColumns:
    """Select jobs by position."""
    return {field: [values[index] for index in indices] for field, values in columns.items()}


def column(columns: JobColumns, field: str) -> list[Any]:
    """The values of a field, one for each job."""
    return columns[field] if field in columns else [OPTIONAL[field]] * len(columns[REQUIRED[0]])


def value_of(columns: JobColumns, field: str, index: int) -> Any:
    """The value of a field of one job."""
    return columns[field][index] if field in columns else OPTIONAL[field]


def columns_of(columns: JobColumns, fields: Iterable[str]) -> list[list[Any]]:
    """The values of fields, for each field one for each job."""
    count = len(columns[REQUIRED[0]])
    return [columns[field] if field in columns else [OPTIONAL[field]] * count for field in fields]


def inside(predictor: Predictor, columns: JobColumns) -> Placed:
    """Find the jobs inside a version's domain."""
    return _lookup(predictor)(columns)


class _Lookup:
    """Looks up jobs in one version, with the reasons for jobs outside its domain."""

    def __init__(self, predictor: Predictor) -> None:
        self.version, self.domain = predictor.card.version, predictor.domain
        self.names = names_of(self.domain)
        self.models = model_names_of(self.domain)
        self.given_gpus = given_gpus(predictor)
        largest = self.domain.max_batch_size
        self.limits = (  # the largest sizes of a job
            ("tokens_per_sample", self.domain.max_tokens_per_sample),
            ("batch_size", largest),
            ("per_device_train_batch_size", largest),
        )
        self.knows_host = predictor.knows_host
        self.usable_gib = {name: gpu.usable_gib for name, gpu in self.domain.gpus.items()}
        self.refusing = {name: gpu for name, gpu in self.domain.gpus.items() if hardware.refuses(name, gpu)}
        self.refusal = lru_cache(maxsize=16_384)(self._refusal)
        self.positions = {
            name: model.max_tokens_per_sample
            for name, model in self.domain.models.items()
            if model.max_tokens_per_sample is not None
        }

        @lru_cache(maxsize=65_536)  # even a long table has few models and stacks
        def row(model: str, method: str, per_node: int, images: Images, *stack: Any) -> int | Problem:
            try:
                settings = with_images(training_stack(method, *stack), images)
                if settings.is_hybrid:
                    settings = settings.model_copy(update={"gpus_per_node": per_node})
                return predictor.row(model, method, settings)
            except Unsupported as error:
                return outside(error.reason(self.version))

        self.row = row

    def __call__(self, columns: JobColumns) -> Placed:
        problems: Problems = {}  # the first problem of a job is its reason
        fields = [field for field in self.names if field != "gpu_model"]
        found = zip(fields, columns_of(columns, fields), strict=True)
        models, methods = (self._find(field, written, problems) for field, written in found)
        gpus, usable_gib = self._gpus(columns, problems)
        tokens, batch_size, each = (self._sizes(field, limit, columns, problems) for field, limit in self.limits)
        longest = self._longest(columns, models, tokens, problems)
        if self.refusing:
            self._check_gpus(columns, gpus, models, problems)
        limits = columns.get(HOST_LIMIT)
        host_limits = self._host_limits(limits, problems) if limits is not None and any(limits) else None
        rows = self._rows(columns, models, methods, problems)
        fine = np.array([index for index in range(len(models)) if index not in problems], np.int64)
        per_worker, most, even = columns_of(columns, ("gpus_per_worker", "max_gpus", "even_layouts"))
        jobs = JobArrays(
            rows=rows,
            usable_gib=usable_gib,
            tokens_per_sample=tokens,
            batch_size=np.where(each > 0, each, batch_size),
            per_device=each > 0,
            gpus_per_worker=np.array(per_worker, np.int64),
            min_gpus=np.ones(len(models), np.int64),
            max_gpus=np.array(most, np.int64),
            even_layouts=np.array(even, bool),
            max_tokens_per_sample=np.minimum(longest, self.domain.max_tokens_per_sample),
            host_limit_gib=host_limits,
        )
        return Placed(jobs if not problems else jobs.subset(fine), fine, problems)

    def _gpus(self, columns: JobColumns, problems: Problems) -> tuple[list[str], Floats]:
        """The types of the jobs' GPUs, empty text where the domain has none, and the usable memory of one GPU."""
        written, memory = columns_of(columns, ("gpu_model", GPU_MEMORY))
        given = self.given_gpus.all_of(written, memory)
        names = self._find("gpu_model", written, problems, {*given})
        usable = np.array([self.usable_gib.get(name, 0.0) for name in names])
        for index, gpu in given.items():
            names[index], usable[index] = gpu.type, columns[GPU_MEMORY][index]
            if gpu.problem:
                problems.setdefault(index, outside(gpu.problem))
        return names, usable

    def _host_limits(self, limits: Sequence[float | None], problems: Problems) -> Floats:
        """The memory of the host of a worker of each job, infinity if it is not given."""
        if not self.knows_host:
            refusal = outside(
                f"{HOST_LIMIT} is not in the domain of version {self.version}; it is known from version 3.0.0"
            )
            for index, limit in enumerate(limits):
                if limit is not None:
                    problems.setdefault(index, refusal)
        return np.array([np.inf if limit is None else limit for limit in limits])

    def _find(
        self, field: str, values: list[str], problems: Problems, may_be_unknown: Container[int] = ()
    ) -> list[str]:
        """The domain's names for the names that users wrote; empty text for an unknown name."""
        known = self.names[field]
        names = {value: known.exact.get(value) or known.find(value) or "" for value in set(values)}
        unknown = {value: outside(known.refusal(value, self.version)) for value, name in names.items() if not name}
        if unknown:
            for index, value in enumerate(values):
                if value in unknown and index not in may_be_unknown:
                    problems.setdefault(index, unknown[value])
        return [names[value] for value in values]

    def _sizes(self, field: str, limit: int, columns: JobColumns, problems: Problems) -> Integers:
        """The sizes in a field, 0 if a job has none; record a problem for sizes beyond the limit."""
        sizes = np.array([size or 0 for size in column(columns, field)], np.int64)
        for index in np.flatnonzero(sizes > limit).tolist():
            reason = f"{field} {sizes[index]} is beyond the domain of version {self.version}, which ends at {limit}"
            problems.setdefault(index, outside(reason))
        return sizes

    def _longest(self, columns: JobColumns, models: list[str], tokens: Integers, problems: Problems) -> Integers:
        """The number of learned positions of each job's model, which limits the length of its samples."""
        longest = np.array([self.positions.get(model, LARGEST_NUMBER) for model in models], np.int64)
        for index in np.flatnonzero(tokens > longest).tolist():
            name = columns["model_name"][index]
            reason = f"tokens_per_sample {tokens[index]} is beyond the {longest[index]} learned positions of {name}"
            problems.setdefault(index, outside(reason))
        return longest

    def _check_gpus(self, columns: JobColumns, gpus: list[str], models: list[str], problems: Problems) -> None:
        """Record a problem for jobs that their GPU type cannot run, regardless of memory."""
        for index, name in enumerate(gpus):
            if name in self.refusing and index not in problems:
                stack = (value_of(columns, field, index) for field in STACK_FIELDS)
                if said := self.refusal(name, models[index], *stack):
                    problems[index] = outside(said)

    def _refusal(self, name: str, model: str, *settings: Any) -> str:
        """The reason why a GPU type that is too old cannot run a job; empty text if it can."""
        stack = stack_of(dict(zip(STACK_FIELDS, settings, strict=True)))
        if hardware.runs_on_older(stack, model):
            return ""
        return hardware.refusal(name, self.refusing[name], stack, self.domain, model)

    def _rows(self, columns: JobColumns, models: list[str], methods: list[str], problems: Problems) -> Integers:
        """The row of each job in the memory model; 0 for a job with a problem."""
        steps, *stacks = columns_of(columns, ("gradient_accumulation_steps", "stack", *SETTINGS))
        accumulating = [count > 1 for count in steps]
        nodes = zip(stacks[1 + SETTINGS.index("sharding")], column(columns, "gpus_per_worker"), strict=True)
        per_node = [count if sharding is not None and "hybrid" in sharding else 0 for sharding, count in nodes]
        images = images_of(columns, models, self.domain, problems)
        found = np.zeros(len(models), np.int64)
        for index, key in enumerate(zip(models, methods, per_node, images, accumulating, *stacks, strict=True)):
            if index not in problems:
                row = self.row(*key)
                if isinstance(row, Problem):
                    problems[index] = row
                else:
                    found[index] = row
        return found


def model_names(predictor: Predictor) -> ModelNames:
    """The names of a version's models."""
    return _lookup(predictor).models


def outside(reason: str) -> Problem:
    """The problem of a job outside a version's domain."""
    return Problem("outside_domain", reason)


def on_counts(predictor: Predictor, columns: JobColumns, gpus: Integers) -> Placed:
    """Find the jobs inside a version's domain that can run on their number of GPUs, regardless of memory.

    Args:
        predictor: a version.
        columns: valid jobs.
        gpus: the number of GPUs of each job, shape (jobs,).
    """
    placed = inside(predictor, columns)
    return placed.without(_beyond(predictor, placed.jobs, gpus[placed.positions]))


def _beyond(predictor: Predictor, jobs: JobArrays, gpus: Integers) -> Problems:
    """The problems of jobs that cannot run on their number of GPUs."""
    domain = predictor.domain
    too_many = gpus > domain.max_gpus
    too_large = jobs.per_device & (jobs.batch_size * gpus > domain.max_batch_size)
    uneven = ~jobs.per_device & (jobs.batch_size % gpus != 0)
    problems: Problems = {}
    for index in np.flatnonzero(too_many | too_large | uneven).tolist():
        count, batch = int(gpus[index]), int(jobs.batch_size[index])
        if too_many[index]:
            reason = f"number_gpus {count} is {_ends(predictor, domain.max_gpus)}"
        elif too_large[index]:
            each = f"per_device_train_batch_size {batch} on {count} GPUs"
            reason = f"{each} is a batch of {batch * count}, {_ends(predictor, domain.max_batch_size)}"
        else:
            reason = f"number_gpus {count} does not divide batch_size {batch}"
        problems[index] = outside(reason)
    return problems


def _ends(predictor: Predictor, limit: int) -> str:
    return f"beyond the domain of version {predictor.card.version}, which ends at {limit}"


@lru_cache(maxsize=8)
def _lookup(predictor: Predictor) -> _Lookup:
    return _Lookup(predictor)


def forget() -> None:
    """Drop the rows that were looked up."""
    _lookup.cache_clear()


def workers(gpus: Integers, gpus_per_worker: Integers) -> Integers:
    """The smallest number of workers that have each number of GPUs."""
    return -(-gpus // gpus_per_worker)
