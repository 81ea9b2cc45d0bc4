"""Read a user's table of runs, look the jobs up in a version's domain, and drop duplicates and contradictions.

A row is a job with ``number_gpus`` and its measurements: whether it finished, the peak of allocated memory, the peak of
used memory. The output of ``ado show measurements`` for a space of the SFTTrainer actuator is such a table.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from autoconf.errors import BadInput
from autoconf.jobs.ado_experiments import EXPERIMENT, settings_in
from autoconf.jobs.job import NUMBERS, OPTIONAL, Workload, check_together, read
from autoconf.jobs.queries import MIN_GPUS, NUMBER_GPUS
from autoconf.jobs.values import is_empty, whole_number
from autoconf.memory.candidates import Candidates
from autoconf.planner.domain import on_counts
from autoconf.planner.estimate import candidates_on
from autoconf.predictor.autogluon import LABEL
from autoconf.predictor.predictor import Predictor

FAILED, VALID = "failed", "is_valid"
ALLOCATED, IN_USE = "peak_allocated_gib", "gpu_memory_utilization_peak"
_SEEN = (FAILED, VALID, ALLOCATED, IN_USE)
# Columns of throughput, each with whether it is that of one GPU; the second two are those of ado's actuator.
RATES = {"tokens_per_second": False, "tokens_per_second_per_gpu": True,
         "dataset_tokens_per_second": False, "dataset_tokens_per_second_per_gpu": True}  # fmt: skip
_YES_NO = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}

# ado's SFTTrainer actuator (https://github.com/IBM/ado, plugins/actuators/sfttrainer, the README of its package): the
# method is in the experiment's name (finetune_lora_benchmark-v1.0.0), followed by the settings that the space
# fixes. Its runs use fms-hf-tuning with non-reentrant checkpointing.
_ACTUATOR = re.compile(r"SFTTrainer\.finetune[_-](full|lora|gptq-lora|pt)(?=[_-])")
_RUNS_AS = {"stack": "fms-hf-tuning", "gradient_checkpointing": "non-reentrant"}
_OF_METHOD = {"lora": {"lora_r": "4"}}
# The actuator's names of settings, each with the field and the meaning of its values.
_ADO: dict[str, tuple[str, dict[str, str]]] = {
    "model_max_length": ("tokens_per_sample", {}),
    "r": ("lora_r", {}),
    "distributed_backend": ("sharding", {"fsdp": "fsdp1"}),
    "bf16": ("mixed_precision", {"true": "bf16", "1": "bf16", "false": "no", "0": "no"}),
    "accelerate_config_mixed_precision": ("mixed_precision", {}),
    "gradient_checkpointing": ("gradient_checkpointing", {"true": "", "1": "", "false": "none", "0": "none"}),
    "gradient_checkpointing_use_reentrant": (
        "gradient_checkpointing",
        {"true": "reentrant", "1": "reentrant", "false": "", "0": ""},
    ),
}
_ANY_TABLE = {"model_max_length": "tokens_per_sample"}


@dataclass(frozen=True)
class UserRuns:
    """Rows of a table that can be used for learning, and counts of all rows by kind."""

    runs: pd.DataFrame  # line, job (a number), fits (1, 0), allocated_gib and in_use_share (NaN where not measured)
    candidates: Candidates
    report: list[dict[str, Any]]  # rows (a sentence), count
    ignored: list[str]  # columns


def read_user_runs(predictor: Predictor, table: pd.DataFrame, source: str) -> UserRuns:
    """Read a table of runs.

    Args:
        predictor: the version with the domain.
        table: a table from ``tables.read_table``: text, with line numbers as index. It has the fields of jobs and
            ``number_gpus``, and one or more of ``failed``, ``is_valid`` (0 or 1), ``peak_allocated_gib`` (GiB, as in
            ``torch.cuda.max_memory_allocated``) and ``gpu_memory_utilization_peak`` (percent of a GPU's memory in
            use, including cache and context, from 0 to 100; 0 if it was not measured). Cells may be empty.
        source: the name of the table in messages.

    Raises:
        BadInput: a required column is missing, cells are invalid (up to 20 are named, with line and column), or no row
            is left to learn from.
    """
    used = _check_columns(table, source)
    rows = zip(table.index, table.to_dict("records"), strict=True)
    every = _checked([_read_run(line, record) for line, record in rows], source)
    telling = [run for run in every if run.finished is not None]
    outside = Counter(run.outside for run in telling if run.outside)
    placed, candidates, problems = _placed(predictor, [run for run in telling if not run.outside])
    outside.update(problems)
    runs = pd.DataFrame([run.seen() for run in placed], columns=["line", LABEL, "allocated_gib", "in_use_share"])
    runs, once = _without_duplicates(_with_keys(runs, candidates))
    left_out = contradicting(predictor, runs, candidates.subset(once))
    kept = ~np.isin(np.arange(len(runs)), left_out)
    counts = {
        "read": len(table),
        "used": int(kept.sum()),
        "duplicates: jobs with the same outcome count once": len(placed) - len(runs),
        "contradictions: omitted, so that no run finished if a smaller one failed": len(left_out),
        "without an outcome or a figure": len(every) - len(telling),
        **{f"outside the domain: {why}": count for why, count in sorted(outside.items())},
    }
    if not kept.any():
        raise BadInput(f"{source}: no row to learn from; " + "; ".join(f"{n} {rows}" for rows, n in counts.items()))
    report = [{"rows": rows, "count": count} for rows, count in counts.items()]
    ignored = [str(column) for column in table if column not in used]
    return UserRuns(runs[kept].reset_index(drop=True), candidates.subset(once[kept]), report, ignored)


def measures_memory(table: pd.DataFrame) -> bool:
    """Whether a table of runs has a column about memory."""
    return not set(_SEEN).isdisjoint(table)


def measures_speed(table: pd.DataFrame) -> bool:
    """Whether a table of runs has a column of throughput."""
    return not RATES.keys().isdisjoint(table)


def read_speed_runs(table: pd.DataFrame, source: str) -> list[Run]:
    """Read the runs of a table that have a throughput and did not fail.

    Args:
        table: as for ``read_user_runs``, with one of the columns ``RATES``, in tokens per second.
        source: the name of the table in messages.

    Raises:
        BadInput: as ``read_user_runs`` raises it.
    """
    _check_columns(table, source)
    rows = zip(table.index, table.to_dict("records"), strict=True)
    runs = _checked([_read_run(line, record) for line, record in rows], source)
    return [run for run in runs if run.tokens_per_second and run.finished is not False]


def _placed(predictor: Predictor, runs: list[Run]) -> tuple[list[Run], Candidates, list[str]]:
    """The runs whose jobs are in a version's domain, their candidates, and the reasons of the others."""
    columns = {field: [run.job.get(field, default) for run in runs] for field, default in _DEFAULTS.items()}
    gpus = np.array([run.gpus for run in runs], np.int64)
    placed = on_counts(predictor, columns, gpus)
    candidates = candidates_on(predictor, placed.jobs, gpus[placed.positions])
    problems = [problem.reason for problem in placed.problems.values()]
    return [runs[position] for position in placed.positions], candidates, problems


_DEFAULTS = {field: OPTIONAL.get(field) for field in Workload.model_fields}


def _check_columns(table: pd.DataFrame, source: str) -> set[str]:
    """The columns that are used.

    Raises:
        BadInput: a required column is missing.
    """
    ado = EXPERIMENT in table and any(_actuator_settings(str(e)) for e in table[EXPERIMENT].unique())
    known = {*Workload.model_fields, NUMBER_GPUS, *_SEEN, *RATES, *_ANY_TABLE, *({EXPERIMENT, *_ADO} if ado else ())}
    has = {*table, *(_ANY_TABLE[column] for column in table if column in _ANY_TABLE), *({"method"} if ado else ())}
    missing = MIN_GPUS.missing_columns(has) + [NUMBER_GPUS] * (NUMBER_GPUS not in has)
    if has.isdisjoint({*_SEEN, *RATES}):
        missing.append(f"one of {', '.join([*_SEEN, *RATES][:5])}")
    if missing:
        raise BadInput(
            f"{source}, line 1: required column missing: {', '.join(missing)}; "
            f"the table has {', '.join(map(str, table))}"
        )
    return known


@cache
def _actuator_settings(experiment: str) -> Mapping[str, str]:
    """The settings in the name of an experiment of the actuator; empty for any other experiment.

    >>> _actuator_settings("SFTTrainer.finetune_lora_benchmark-v1.0.0-fms_hf_tuning_version.2.8.2-r.8")
    {'method': 'lora', 'fms_hf_tuning_version': '2.8.2', 'r': '8'}
    """
    found = _ACTUATOR.match(experiment)
    return {"method": found[1], **settings_in(experiment)} if found else {}


# --- rows -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A row of the table."""

    line: int
    job: Mapping[str, Any]
    gpus: int
    finished: bool | None  # None if unknown or contradictory
    allocated_gib: float | None
    in_use_percent: float | None
    tokens_per_second: float | None  # of all GPUs
    outside: str  # why no version supports its job; empty text if one may
    problems: tuple[str, ...]  # invalid cells

    def seen(self) -> tuple[int, int, float, float]:
        """Line, label, allocated GiB and share of used memory; a failed run has no peak."""
        allocated, in_use = (self.allocated_gib, self.in_use_percent) if self.finished else (None, None)
        gib, percent = (np.nan if figure is None else figure for figure in (allocated, in_use))
        return self.line, int(bool(self.finished)), gib, percent / 100


def _checked(runs: list[Run], source: str) -> list[Run]:
    """Check that no run has a problem.

    Raises:
        BadInput: a run has a problem, or the values of used memory are not percentages.
    """
    problems = [f"{source}, line {run.line}, {problem}" for run in runs for problem in run.problems]
    in_use = [run.in_use_percent for run in runs if run.in_use_percent]
    if in_use and max(in_use) <= 1:
        problems.insert(0, f"{source}, column {IN_USE}: no value is above 1; must be percentages, from 0 to 100")
    if problems:
        raise BadInput.listing(problems, source, "more problems")
    return runs


def _read_run(line: int, record: Mapping[str, str]) -> Run:
    """Read a row; problems are collected instead of raised."""
    problems: list[str] = []
    if _number(record[NUMBER_GPUS]) == 0:  # the actuator's value for CPU
        job, gpus, outside = dict[str, Any](), 0, f"{NUMBER_GPUS} is 0"
    else:
        job, gpus, outside = _read_job(record, problems)
    allocated, in_use = _read_figure(record, ALLOCATED, np.inf, problems), _read_figure(record, IN_USE, 100.0, problems)
    outcomes = _read_outcomes(record, problems)
    if not outcomes and (allocated or in_use):  # only a finished run has figures
        outcomes = {True}
    finished = outcomes.pop() if len(outcomes) == 1 else None
    rate = _read_rate(record, gpus, problems)
    return Run(line, job, gpus, finished, allocated, in_use, rate, outside, tuple(problems))


def _read_job(record: Mapping[str, str], problems: list[str]) -> tuple[dict[str, Any], int, str]:
    """A row's job and number of GPUs, and the reason if no version supports the job."""
    settings = _actuator_settings(record.get(EXPERIMENT, ""))
    job, gpus, outside = dict[str, Any](), 0, ""
    texts = _texts(record, settings)
    for field in Workload.model_fields:
        value, column = texts.get(field, ("", field))
        try:
            job[field] = _read_cached(field, value)
        except ValueError as error:
            job[field] = None
            if settings and field not in NUMBERS and value:  # the actuator has more of them than versions
                outside = str(error)
            else:
                problems.append(f"column {column}: {str(error).removeprefix(f'{field}: ')}")
    try:
        gpus = whole_number(NUMBER_GPUS, record[NUMBER_GPUS])
    except ValueError as error:
        problems.append(f"column {error}")
    if not problems and not outside:
        try:
            check_together(job)
        except ValueError as error:
            if settings:
                outside = str(error)
            else:
                problems.append(str(error))
    return job, gpus, outside


def _texts(record: Mapping[str, str], settings: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The text of each field that a row sets, with its column."""
    texts: dict[str, tuple[str, str]] = {}
    for column, value in record.items():
        field = _ANY_TABLE.get(column, column)
        means_other = bool(settings) and column == field and column in _ADO  # than the field of that name
        if field in Workload.model_fields and not is_empty(value) and not means_other:
            texts[field] = value, column
    if settings:
        for field, value in {**settings, **_fixed_by_actuator(record, settings)}.items():
            if field in Workload.model_fields:
                texts.setdefault(field, (value, EXPERIMENT))
    return texts


def _fixed_by_actuator(record: Mapping[str, str], settings: Mapping[str, str]) -> dict[str, str]:
    """The fields that follow from the actuator's own settings, and those that all its runs share."""
    fields = {**_RUNS_AS, **_OF_METHOD.get(settings["method"], {})}
    given = {**settings, **{column: value for column, value in record.items() if not is_empty(value)}}
    for name, (field, values) in _ADO.items():
        value = values.get(given.get(name, "").lower(), given.get(name, ""))
        if value and fields.get(field) not in ("none", "bf16"):  # the first of two names counts
            fields[field] = value
    return fields


def _read_figure(record: Mapping[str, str], column: str, most: float, problems: list[str]) -> float | None:
    """The largest number of a cell; ado lists the values of a point that was measured several times."""
    numbers = [_number(text) for text in _values(record.get(column, ""))]
    if any(not 0 <= number <= most or number == np.inf for number in numbers):
        allowed = "> 0" if most == np.inf else f"from 0 to {most:g}"
        problems.append(f"column {column}: must be a number {allowed}, got {record[column]!r}")
        return None
    return max(numbers, default=0.0) or None


def _read_rate(record: Mapping[str, str], gpus: int, problems: list[str]) -> float | None:
    """Tokens per second of all GPUs; the median of the values of a point that was measured several times."""
    for column, of_one_gpu in RATES.items():
        numbers = [_number(text) for text in _values(record.get(column, ""))]
        if any(not 0 <= number < np.inf for number in numbers):
            problems.append(f"column {column}: must be a number > 0, got {record[column]!r}")
        elif any(numbers):
            return float(np.median(numbers)) * (gpus if of_one_gpu else 1)
    return None


def _read_outcomes(record: Mapping[str, str], problems: list[str]) -> set[bool]:
    """The outcomes of the run in a row; True means finished."""
    outcomes = set()
    for column, means_finished in ((FAILED, False), (VALID, True)):
        for text in _values(record.get(column, "")):
            if text.lower() not in _YES_NO:
                problems.append(f"column {column}: must be 0 or 1, got {text!r}")
            else:
                outcomes.add(_YES_NO[text.lower()] == means_finished)
    if len(outcomes) == 2 and all(record.get(column) for column in (FAILED, VALID)):
        problems.append(f"column {VALID}: contradicts {FAILED}")
    return outcomes


@cache
def _read_cached(field: str, text: str) -> Any:
    return read(field, text)


def _values(text: str) -> list[str]:
    """Split a cell into its values.

    >>> _values("[98.5, 99.0]"), _values(" ")
    (['98.5', '99.0'], [])
    """
    return [value.strip() for value in text.strip().strip("[]").split(",") if value.strip()]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan


# --- duplicates and contradictions ------------------------------------------------------------------------------------


def _with_keys(runs: pd.DataFrame, candidates: Candidates) -> pd.DataFrame:
    """Add keys to runs: the configuration and GPU, the size, and the job for any number of GPUs."""
    runs = runs.assign(gpus=candidates.gpus, tokens=candidates.tokens_per_gpu)
    way = pd.DataFrame({"row": candidates.rows, "usable": candidates.usable_gib})
    runs["way"] = way.groupby(["row", "usable"], sort=False).ngroup()
    return runs.assign(
        job=way.assign(tokens=runs["gpus"] * runs["tokens"]).groupby([*way, "tokens"], sort=False).ngroup()
    )


def _without_duplicates(runs: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """Keep one row for each job and outcome, with the largest figures and the line of the first row."""
    same = runs.groupby(["way", "gpus", "tokens", LABEL], sort=False)
    figures = {name: same[name].transform("max") for name in ("allocated_gib", "in_use_share")}
    first = ~runs.duplicated(["way", "gpus", "tokens", LABEL])
    return runs.assign(**figures)[first].reset_index(drop=True), np.flatnonzero(first)


def contradicting(predictor: Predictor, runs: pd.DataFrame, candidates: Candidates) -> list[int]:
    """Find rows to omit, so that no remaining run finished although a smaller one failed.

    A smaller run has the same configuration and GPU memory, at most as many tokens per GPU, at least as many GPUs, and
    by the version needs no more memory (two GPUs may each need more than one). The row with the most contradictions is
    omitted first; of several, a failed one; of these, the first one.
    """
    needed = candidates.usable_gib - predictor.features(candidates)["headroom_gib"].to_numpy()
    pairs: dict[int, set[int]] = {}
    for _, way in runs.groupby("way", sort=False):
        failed, finished = (way.index[way[LABEL] == fits].to_numpy() for fits in (0, 1))
        for row in failed:
            larger = (
                (runs["tokens"].to_numpy()[finished] >= runs["tokens"][row])
                & (runs["gpus"].to_numpy()[finished] <= runs["gpus"][row])
                & (needed[finished] >= needed[row] - 1e-9)
            )
            for other in finished[larger].tolist():
                pairs.setdefault(int(row), set()).add(other)
                pairs.setdefault(other, set()).add(int(row))
    left_out = []
    while pairs:
        worst = min(pairs, key=lambda row: (-len(pairs[row]), runs[LABEL][row], row))
        left_out.append(worst)
        for other in pairs.pop(worst):
            pairs[other].discard(worst)
            if not pairs[other]:
                del pairs[other]
    return sorted(left_out)
