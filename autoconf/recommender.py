"""From jobs to recommendations: candidates -> rules -> one predictor call -> the smallest GPU count that fits."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, overload

import numpy as np
import pandas as pd

from autoconf import predictors, rules
from autoconf.memory import GIB
from autoconf.predictors import DEFAULT, RELEASED, Predictor
from autoconf.rules import Candidates
from autoconf.workload import REQUIRED, Workload, read

# Jobs answered at once: bounds the memory that candidates take, whatever the table's length.
CHUNK = 50_000


@dataclass(frozen=True)
class Recommendation:
    """The smallest number of GPUs that a job fits on, or why there is none."""

    can_recommend: int  # 0 or 1
    gpus: int | None = None  # per worker; None if there is no recommendation
    workers: int | None = None
    reason: str = ""  # why there is no recommendation; empty if there is one


@overload
def recommend(workloads: Workload, model_version: str | None = None) -> Recommendation: ...
@overload
def recommend(workloads: pd.DataFrame, model_version: str | None = None) -> pd.DataFrame: ...
def recommend(workloads: Workload | pd.DataFrame, model_version: str | None = None) -> Recommendation | pd.DataFrame:
    """Recommend the smallest number of GPUs, for one job or for a table of jobs.

    Args:
        workloads: a ``Workload``, or a DataFrame with its fields as columns. Optional columns may be absent and their
            cells empty (None, NaN, NA, blank text); other columns are ignored.
        model_version: predictor version for jobs that name none; the newest by default.

    Returns:
        A ``Recommendation`` for a ``Workload``. For a DataFrame, one with the same index and the columns
        ``can_recommend`` (0 or 1), ``gpus`` (per worker) and ``workers`` (nullable integers) and ``reason`` (text,
        empty when recommended). A row with a value that can never be right gets that reason.

    Raises:
        TypeError: ``workloads`` is neither.
        ValueError: a required column is missing, a column of the job is there twice, the columns have several levels,
            or ``model_version`` cannot be one.
        AutoConfError: the installation is broken.

    >>> job = Workload(model_name="llama-7b", method="lora", gpu_model="NVIDIA-A100-80GB-PCIe",
    ...                tokens_per_sample=8192, batch_size=16)
    >>> recommend(job)
    Recommendation(can_recommend=1, gpus=2, workers=1, reason='')
    >>> recommend(pd.DataFrame([job.model_dump()])).drop(columns="reason")
       can_recommend  gpus  workers
    0              1     2        1
    """
    if isinstance(workloads, Workload):
        columns = {field: [getattr(workloads, field)] for field in Workload.model_fields}
        return _answer(columns, model_version)[0]
    if not isinstance(workloads, pd.DataFrame):
        raise TypeError(f"workloads: must be a Workload or a pandas DataFrame, got {type(workloads).__name__}")
    if isinstance(workloads.columns, pd.MultiIndex):  # one level of names may come as such, too
        if workloads.columns.nlevels > 1:
            raise ValueError(f"columns: must have one level of names, got {workloads.columns.nlevels}")
        workloads = workloads.set_axis(workloads.columns.get_level_values(0), axis=1)
    twice = [field for field in Workload.model_fields if list(workloads.columns).count(field) > 1]
    if twice:
        raise ValueError(f"{', '.join(twice)}: more than one column of that name")
    missing = [field for field in REQUIRED if field not in workloads.columns]
    if missing:
        raise ValueError(
            f"{', '.join(missing)}: required column missing; the table has {', '.join(map(str, workloads))}"
        )
    fields = [field for field in Workload.model_fields if field in workloads]
    answers = []
    for start in range(0, max(len(workloads), 1), CHUNK):
        chunk = workloads.iloc[start : start + CHUNK]
        answers.append(_frame(_answer({field: chunk[field].tolist() for field in fields}, model_version)))
    return pd.concat(answers).set_axis(workloads.index)


def _frame(answers: Sequence[Recommendation]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "can_recommend": np.array([a.can_recommend for a in answers], np.int64),
            "gpus": pd.array([a.gpus for a in answers], "Int64"),
            "workers": pd.array([a.workers for a in answers], "Int64"),
            "reason": np.array([a.reason for a in answers], dtype=object),
        }
    )


def _answer(columns: dict[str, list[Any]], default_version: str | None) -> list[Recommendation]:
    """Answer jobs given as lists of raw values per field."""
    default = read("model_version", default_version) or DEFAULT
    count = len(columns[REQUIRED[0]])
    problems: list[str] = [""] * count
    jobs = {}
    for field in Workload.model_fields:
        jobs[field] = _checked(columns.get(field, [None] * count), partial(read, field), problems)
    jobs["model_version"] = [version or default for version in jobs["model_version"]]
    answers = [Recommendation(0, reason=problem) for problem in problems]
    by_version: dict[str, list[int]] = {}
    for index, version in enumerate(jobs["model_version"]):
        if not problems[index]:
            by_version.setdefault(version, []).append(index)
    for version, indices in by_version.items():
        if version not in RELEASED:
            sentence = f"model_version {version!r} is not released; released versions are {', '.join(RELEASED)}"
            found: Iterable[Recommendation] = [Recommendation(0, reason=sentence)] * len(indices)
        else:
            chosen = {field: [values[i] for i in indices] for field, values in jobs.items()}
            found = _recommend(predictors.load(version), chosen)
        for index, answer in zip(indices, found, strict=True):
            answers[index] = answer
    return answers


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


def _recommend(predictor: Predictor, jobs: dict[str, list[Any]]) -> list[Recommendation]:
    """Answer jobs whose values are valid, by one version."""
    lookup = _Lookup(predictor)
    resolved = [lookup(*job) for job in zip(*(jobs[field] for field in _Lookup.FIELDS), strict=True)]
    answers = [Recommendation(0, reason=r) if isinstance(r, str) else None for r in resolved]
    inside = [index for index, answer in enumerate(answers) if answer is None]
    if inside:
        rows, usable = np.array([resolved[i] for i in inside]).T
        numbers = {
            field: np.array([jobs[field][i] for i in inside], np.int64)
            for field in ("tokens_per_sample", "batch_size", "gpus_per_worker", "max_gpus")
        }
        for index, answer in zip(inside, smallest(predictor, rows.astype(np.int64), usable, **numbers), strict=True):
            answers[index] = answer
    return answers  # type: ignore[return-value]


class _Lookup:
    """Find a job's figures and memory in a version, or say why it lies outside the version's domain."""

    FIELDS = (
        "model_name", "method", "gpu_model", "tokens_per_sample", "batch_size", "gradient_accumulation_steps"
    )  # fmt: skip

    def __init__(self, predictor: Predictor) -> None:
        self.version, self.domain, self.rows = predictor.card.version, predictor.domain, predictor.rows
        self.models = _with_aliases(self.domain.models)
        self.gpus = _with_aliases(self.domain.gpus)

    def __call__(
        self, model_name: str, method: str, gpu_model: str, tokens: int, batch_size: int, steps: int
    ) -> tuple[int, float] | str:
        domain = self.domain
        known: tuple[tuple[str, str, Iterable[str]], ...] = (
            ("model_name", model_name, self.models),
            ("method", method, domain.methods),
            ("gpu_model", gpu_model, self.gpus),
        )
        for field, value, names in known:
            if value not in names:
                return f"{field} {value!r} is not in the domain of version {self.version}{_hint(value, names)}"
        model = self.models[model_name]
        for field, number, limit in (
            ("tokens_per_sample", tokens, domain.max_tokens_per_sample),
            ("batch_size", batch_size, domain.max_batch_size),
        ):
            if number > limit:
                return f"{field} {number} is beyond the domain of version {self.version}, which ends at {limit}"
        longest = domain.models[model].max_tokens_per_sample
        if longest is not None and tokens > longest:
            return f"tokens_per_sample {tokens} is beyond the {longest} learned positions of {model_name}"
        return self.rows[model, method, steps > 1], domain.gpus[self.gpus[gpu_model]].usable_gib


def _with_aliases(entries: dict[str, Any]) -> dict[str, str]:
    """Every name and alias -> the name."""
    return {alias: name for name, entry in entries.items() for alias in (name, *entry.aliases)}


def _hint(value: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(value, list(names), n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def decide(predictor: Predictor, candidates: Candidates) -> rules.Booleans:
    """Whether candidates fit, shape (candidates,): the rules, then one predictor call for those that pass them."""
    fits = rules.passing(candidates)
    fits[fits] = predictor.fits(candidates.subset(fits))
    return fits


def smallest(
    predictor: Predictor,
    rows: np.ndarray,
    usable_gib: np.ndarray,
    *,
    tokens_per_sample: np.ndarray,
    batch_size: np.ndarray,
    gpus_per_worker: np.ndarray,
    max_gpus: np.ndarray,
) -> list[Recommendation]:
    """The smallest candidate that fits, for jobs inside the domain; all arrays have shape (jobs,)."""
    limit = np.minimum(max_gpus, predictor.domain.max_gpus)
    counts = np.arange(1, limit.max() + 1)
    workers = -(-counts // gpus_per_worker[:, None])  # ceil(n / gpus_per_worker)
    allowed = (counts <= limit[:, None]) & (batch_size[:, None] % counts == 0) & (counts % workers == 0)
    job, column = np.nonzero(allowed)
    gpus = counts[column]
    candidates = Candidates(
        predictor.memory, rows[job], gpus, batch_size[job] / gpus * tokens_per_sample[job], usable_gib[job]
    )
    fits = decide(predictor, candidates)
    best = np.zeros(len(rows), np.int64)
    best[job[fits][::-1]] = gpus[fits][::-1]  # the smallest count is written last
    last = np.searchsorted(job, np.arange(len(rows)), side="right") - 1  # each job's largest candidate
    without = np.flatnonzero(best == 0)
    reasons = iter(_why_not(candidates.subset(last[without]), limit[without], batch_size[without]))
    nodes = workers[np.arange(len(best)), best - 1]
    return [
        Recommendation(1, gpus=total // count, workers=count) if total else Recommendation(0, reason=next(reasons))
        for total, count in zip(best.tolist(), nodes.tolist(), strict=True)
    ]


def _why_not(largest: Candidates, limits: np.ndarray, batch_sizes: np.ndarray) -> list[str]:
    """Why jobs have no recommendation, told for the largest number of GPUs that was considered for each."""
    if not len(largest.rows):
        return []
    peaks = largest.memory.peak_bytes(largest.rows, largest.gpus, largest.tokens_per_gpu) / GIB
    return [
        f"no number of GPUs up to {limit} that divides batch_size {batch_size} is enough: "
        + (
            failed_rule
            or f"training peaks near {peak:.1f} GiB {rules.on_each(gpus)}, which leaves too little of {usable:g} GiB"
        )
        for failed_rule, limit, batch_size, peak, gpus, usable in zip(
            rules.reasons(largest), limits, batch_sizes, peaks, largest.gpus, largest.usable_gib, strict=True
        )
    ]
