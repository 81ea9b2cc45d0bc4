"""Look jobs up in a version's domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import repeat
from typing import Any

import numpy as np

from autoconf.jobs.job import OPTIONAL, REQUIRED
from autoconf.jobs.names import Names
from autoconf.jobs.presets import SETTINGS, training_stack
from autoconf.jobs.values import LARGEST_NUMBER
from autoconf.memory.units import Booleans, Floats, Integers, Unsupported
from autoconf.predictor.predictor import Predictor

Columns = dict[str, list[Any]]  # a field of valid jobs -> its value for each; one that is absent has its default


@dataclass(frozen=True)
class Jobs:
    """Jobs inside a version's domain; all arrays have shape (jobs,)."""

    rows: Integers  # each job's figures in the version's memory table
    usable_gib: Floats
    tokens_per_sample: Integers
    batch_size: Integers
    gpus_per_worker: Integers
    max_gpus: Integers
    per_device: Booleans | bool = False  # whether ``batch_size`` is that of each GPU
    min_gpus: Integers | int = 1  # fewest to consider
    max_tokens_per_sample: Integers | int = 0  # of the domain, or of the model's learned positions

    def takes(self, counts: Integers, max_batch_size: int) -> Booleans:
        """Whether a job's batch can be had on so many GPUs, shape (jobs, counts)."""
        batch_size, per_device = self.batch_size[:, None], self.on_each[:, None]
        return np.where(per_device, batch_size * counts <= max_batch_size, batch_size % counts == 0)

    def tokens_per_gpu(self, which: Integers, gpus: Integers) -> Floats:
        """Tokens of a micro-batch on each GPU, of some of the jobs on so many GPUs."""
        per_gpu = np.where(self.on_each[which], self.batch_size[which], self.batch_size[which] / gpus)
        return per_gpu * self.tokens_per_sample[which]

    def subset(self, which: Integers) -> Jobs:
        return Jobs(*(np.broadcast_to(getattr(self, field.name), self.rows.shape)[which] for field in fields(self)))

    @property
    def on_each(self) -> Booleans:
        """``per_device``, of every job."""
        return np.broadcast_to(self.per_device, self.batch_size.shape)


_NUMBERS = ("tokens_per_sample", "gpus_per_worker", "max_gpus")


def pick(columns: Columns, indices: Sequence[int]) -> Columns:
    """Some of the jobs."""
    return {field: [values[index] for index in indices] for field, values in columns.items()}


def column(columns: Columns, field: str) -> list[Any]:
    """A field's value for each job."""
    return columns[field] if field in columns else [OPTIONAL[field]] * len(columns[REQUIRED[0]])


def inside(predictor: Predictor, columns: Columns) -> tuple[Jobs, list[str]]:
    """The jobs that lie inside a version's domain, and for each of all jobs why it does not; empty text if it does."""
    lookup = _lookup(predictor)
    fields = (columns[field] if field in columns else repeat(OPTIONAL[field]) for field in _Lookup.FIELDS)
    found = [lookup(*job) for job in zip(*fields, strict=False)]  # defaults repeat without end
    known = [index for index, place in enumerate(found) if not isinstance(place, str)]
    rows, usable, longest = np.array([found[index] for index in known], float).reshape(-1, 3).T
    some = pick(columns, known)
    tokens, per_worker, most = (np.array(column(some, field), np.int64) for field in _NUMBERS)
    on_each, global_ = column(some, "per_device_train_batch_size"), column(some, "batch_size")
    batch_size = np.array([size or each for size, each in zip(global_, on_each, strict=True)], np.int64)
    per_device = np.array([each is not None for each in on_each], bool)
    jobs = Jobs(
        rows.astype(np.int64), usable, tokens, batch_size, per_worker, most, per_device,
        max_tokens_per_sample=longest.astype(np.int64),
    )  # fmt: skip
    return jobs, [place if isinstance(place, str) else "" for place in found]


class _Lookup:
    """Find a job's figures and memory in a version, or say why it lies outside the version's domain."""

    FIELDS = (
        "model_name", "method", "gpu_model", "tokens_per_sample", "batch_size", "per_device_train_batch_size",
        "gradient_accumulation_steps", "stack", *SETTINGS,
    )  # fmt: skip

    def __init__(self, predictor: Predictor) -> None:
        self.version, self.domain = predictor.card.version, predictor.domain
        self.names = {
            "model_name": Names({name: model.aliases for name, model in self.domain.models.items()}, families=True),
            "method": Names(dict.fromkeys(self.domain.methods, ())),
            "gpu_model": Names({name: gpu.aliases for name, gpu in self.domain.gpus.items()}),
        }

        # A table has few models and ways to train them, however long it is.
        @lru_cache(maxsize=65_536)
        def row(model: str, method: str, *stack: Any) -> int | str:
            try:
                return predictor.row(model, method, training_stack(method, *stack))
            except Unsupported as error:
                return error.reason(self.version)

        self.row = row

    def __call__(
        self, model_name: str, method: str, gpu_model: str, tokens: int, batch_size: int | None, on_each: int | None,
        steps: int, *stack: Any,
    ) -> tuple[int, float, int] | str:  # fmt: skip
        domain = self.domain
        found = []
        for (field, names), value in zip(self.names.items(), (model_name, method, gpu_model), strict=True):
            name = names.find(value)
            if name is None:
                known = names.known_like(value)
                return f"{field} {value!r} is not in the domain of version {self.version}, which has {known}"
            found.append(name)
        model, method, gpu = found
        for field, number, limit in (
            ("tokens_per_sample", tokens, domain.max_tokens_per_sample),
            ("batch_size", batch_size or 0, domain.max_batch_size),
            ("per_device_train_batch_size", on_each or 0, domain.max_batch_size),
        ):
            if number > limit:
                return f"{field} {number} is beyond the domain of version {self.version}, which ends at {limit}"
        longest = domain.models[model].max_tokens_per_sample
        if longest is not None and tokens > longest:
            return f"tokens_per_sample {tokens} is beyond the {longest} learned positions of {model_name}"
        row = self.row(model, method, steps > 1, *stack)
        if isinstance(row, str):
            return row
        return row, domain.gpus[gpu].usable_gib, min(longest or LARGEST_NUMBER, domain.max_tokens_per_sample)


def on_counts(predictor: Predictor, columns: Columns, gpus: Integers) -> tuple[Jobs, Integers, list[str]]:
    """The jobs that lie inside a version's domain on their number of GPUs, their places, and why others do not."""
    jobs, problems = inside(predictor, columns)
    known = np.flatnonzero([not problem for problem in problems])
    for index, problem in zip(known, _beyond(predictor, jobs, gpus[known]), strict=True):
        problems[index] = problem
    fine = np.array([not problems[index] for index in known], bool)
    return jobs.subset(np.flatnonzero(fine)), known[fine], problems


def _beyond(predictor: Predictor, jobs: Jobs, gpus: Integers) -> list[str]:
    """Why each of some jobs cannot be had on a number of GPUs, whatever it holds; empty text where it can."""
    domain, ends = predictor.domain, f"beyond the domain of version {predictor.card.version}, which ends at"
    problems = [""] * len(gpus)
    for index, (count, batch, on_each) in enumerate(zip(gpus, jobs.batch_size, jobs.on_each, strict=True)):
        if count > domain.max_gpus:
            problems[index] = f"number_gpus {count} is {ends} {domain.max_gpus}"
        elif on_each and batch * count > domain.max_batch_size:
            whole = f"per_device_train_batch_size {batch} on {count} GPUs is a batch of {batch * count}"
            problems[index] = f"{whole}, {ends} {domain.max_batch_size}"
        elif not on_each and batch % count:
            problems[index] = f"number_gpus {count} does not divide batch_size {batch}"
    return problems


@lru_cache(maxsize=8)
def _lookup(predictor: Predictor) -> _Lookup:
    return _Lookup(predictor)


def workers(gpus: Integers, gpus_per_worker: Integers) -> Integers:
    """As few as have room for so many GPUs."""
    return -(-gpus // gpus_per_worker)
