"""A user's own table of runs: read, placed in a version's domain, freed of duplicates and contradictions.

A row is a job with ``number_gpus`` and what was seen of it: whether it finished, the most that was allocated, the most
that was in use. What ``ado show measurements`` writes of a space of the SFTTrainer actuator is such a table as it is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from autoconf.errors import BadInput
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
_YES_NO = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
_MOST_PROBLEMS = 20

# ado's SFTTrainer actuator (https://github.com/IBM/ado, plugins/actuators/sfttrainer, the README of its package): the
# method is in the experiment's name (finetune_lora_benchmark-v1.0.0), after which come settings that the space
# fixes, as in -gradient_accumulation_steps.1-r.8. Its runs are fms-hf-tuning's, checkpointed, without reentrance.
_EXPERIMENT = re.compile(r"SFTTrainer\.finetune[_-](full|lora|gptq-lora|pt)(?=[_-])")
_SETTING = re.compile(r"-(?!v\d)([a-z]\w*)\.")  # but the version
_RUNS_AS = {"stack": "fms-hf-tuning", "gradient_checkpointing": "non-reentrant"}
_OF_METHOD = {"lora": {"lora_r": "4"}}
# Its names of settings, each with the field that they mean and what their values are there.
_ADO: dict[str, tuple[str, dict[str, str]]] = {
    "model_max_length": ("tokens_per_sample", {}),
    "r": ("lora_r", {}),
    "distributed_backend": ("sharding", {"fsdp": "fsdp1"}),
    "bf16": ("mixed_precision", {"true": "bf16", "1": "bf16", "false": "no", "0": "no"}),
    "accelerate_config_mixed_precision": ("mixed_precision", {}),
    "gradient_checkpointing": ("gradient_checkpointing", {"true": "", "1": "", "false": "none", "0": "none"}),
    "gradient_checkpointing_use_reentrant": (
        "gradient_checkpointing", {"true": "reentrant", "1": "reentrant", "false": "", "0": ""},
    ),
}  # fmt: skip
_ANY_TABLE = {"model_max_length": "tokens_per_sample"}


@dataclass(frozen=True)
class Measured:
    """Rows of a table that can be learned from, and what became of the others."""

    runs: pd.DataFrame  # line, job (a number), fits (1, 0), allocated_gib and in_use_share (NaN where not measured)
    candidates: Candidates
    report: list[dict[str, Any]]  # rows (a sentence), count
    ignored: list[str]  # columns


def read_measured(predictor: Predictor, table: pd.DataFrame, source: str) -> Measured:
    """Read a table of runs.

    Args:
        predictor: the version whose domain counts.
        table: as ``tables.read_table`` gives it: text, the index being line numbers. It has the fields of jobs and
            ``number_gpus``, and one or more of ``failed``, ``is_valid`` (0 or 1), ``peak_allocated_gib`` (GiB, as
            ``torch.cuda.max_memory_allocated`` counts) and ``gpu_memory_utilization_peak`` (percent of a GPU's memory
            in use, cache and context included, from 0 to 100; 0 where it was not measured). Cells may be empty.
        source: what messages call the table.

    Raises:
        BadInput: a required column is missing, a cell cannot be what it says (up to 20 are named, with line and
            column), or no row is left to learn from.
    """
    used = _check_columns(table, source)
    problems: list[str] = []
    rows, outside = [], Counter[str]()
    for line, record in zip(table.index, table.to_dict("records"), strict=True):
        row = _Row(line, record)
        problems += [f"{source}, line {line}, {problem}" for problem in row.problems]
        rows.append(row)
    if len(problems) > _MOST_PROBLEMS:
        problems[_MOST_PROBLEMS:] = [f"{source}: {len(problems) - _MOST_PROBLEMS} more problems"]
    in_use = [row.in_use for row in rows if row.in_use]
    if in_use and max(in_use) <= 1:
        problems.append(f"{source}, column {IN_USE}: no value is above 1; percent are meant, from 0 to 100")
    if problems:
        raise BadInput("\n".join(problems))
    silent = sum(not row.says for row in rows)
    outside.update(row.outside for row in rows if row.says and row.outside)
    rows = [row for row in rows if row.says and not row.outside]
    columns = {field: [row.job.get(field, default) for row in rows] for field, default in _DEFAULTS.items()}
    gpus = np.array([row.gpus for row in rows], np.int64)
    placed = on_counts(predictor, columns, gpus)
    outside.update(problem.reason for problem in placed.problems.values())
    candidates = candidates_on(predictor, placed.jobs, gpus[placed.positions])
    rows = [rows[position] for position in placed.positions]
    runs = pd.DataFrame([row.seen() for row in rows], columns=["line", LABEL, "allocated_gib", "in_use_share"])
    runs, once = _without_duplicates(_with_keys(runs, candidates))
    left_out = contradicting(predictor, runs, candidates.subset(once))
    kept = ~np.isin(np.arange(len(runs)), left_out)
    report = [
        {"rows": "read", "count": len(table)},
        {"rows": "used", "count": int(kept.sum())},
        {"rows": "duplicates: jobs that ended alike count once", "count": len(rows) - len(runs)},
        {
            "rows": "contradictions: left out, so that no run finished where a smaller one failed",
            "count": len(left_out),
        },
        {"rows": "without an outcome or a figure", "count": silent},
        *({"rows": f"outside the domain: {why}", "count": count} for why, count in sorted(outside.items())),
    ]
    if not kept.any():
        raise BadInput(f"{source}: no row to learn from; " + "; ".join(f"{r['count']} {r['rows']}" for r in report))
    ignored = [str(column) for column in table if column not in used]
    return Measured(runs[kept].reset_index(drop=True), candidates.subset(once[kept]), report, ignored)


_DEFAULTS = {field: OPTIONAL.get(field) for field in Workload.model_fields}


def _check_columns(table: pd.DataFrame, source: str) -> set[str]:
    """The columns that count.

    Raises:
        BadInput: one that must be there is missing.
    """
    ado = "experiment_id" in table and any(_settings_of(str(e)) for e in table["experiment_id"].unique())
    known = {*Workload.model_fields, NUMBER_GPUS, *_SEEN, *_ANY_TABLE, *({"experiment_id", *_ADO} if ado else ())}
    has = {*table, *(_ANY_TABLE[column] for column in table if column in _ANY_TABLE), *({"method"} if ado else ())}
    missing = MIN_GPUS.missing_columns(has) + [NUMBER_GPUS] * (NUMBER_GPUS not in has)
    if has.isdisjoint(_SEEN):
        missing.append(f"one of {', '.join(_SEEN)}")
    if missing:
        raise BadInput(
            f"{source}, line 1: required column missing: {', '.join(missing)}; "
            f"the table has {', '.join(map(str, table))}"
        )
    return known


@cache
def _settings_of(experiment: str) -> Mapping[str, str]:
    """The settings in the name of one of the actuator's experiments; none for any other.

    >>> _settings_of("SFTTrainer.finetune_lora_benchmark-v1.0.0-fms_hf_tuning_version.2.8.2-r.8")
    {'method': 'lora', 'fms_hf_tuning_version': '2.8.2', 'r': '8'}
    """
    found = _EXPERIMENT.match(experiment)
    if not found:
        return {}
    _, *parts = _SETTING.split(experiment)
    return {"method": found[1], **dict(zip(parts[::2], parts[1::2], strict=True))}


class _Row:
    """A row as it was read; ``problems`` says what cannot be right, ``outside`` why no version has its job."""

    def __init__(self, line: int, record: Mapping[str, str]) -> None:
        self.line, self.record, self.problems, self.outside = line, record, list[str](), ""
        settings = _settings_of(record.get("experiment_id", ""))
        self.job = dict(self._fields(settings))
        self.gpus = 0
        if _number(record[NUMBER_GPUS]) == 0:  # the actuator's way to say CPU
            self.outside = f"{NUMBER_GPUS} is 0"
        else:
            self.gpus = self._read(NUMBER_GPUS, lambda text: whole_number(NUMBER_GPUS, text)) or 0
            if not self.problems and not self.outside:
                self._check_together(bool(settings))
        self.allocated = self._figure(ALLOCATED, np.inf)
        self.in_use = self._figure(IN_USE, 100.0) or None
        self.finished = self._outcome()

    def _fields(self, settings: Mapping[str, str]) -> Iterable[tuple[str, Any]]:
        texts: dict[str, tuple[str, str]] = {}  # of a field: value, and the column that says it
        for column, value in self.record.items():
            if column in Workload.model_fields and column not in _ADO and not is_empty(value):
                texts[column] = value, column
            elif column in _ANY_TABLE and not is_empty(value):
                texts[_ANY_TABLE[column]] = value, column
        if not settings:
            texts["gradient_checkpointing"] = self.record.get("gradient_checkpointing", ""), "gradient_checkpointing"
        else:
            comes_with = {**_RUNS_AS, **_OF_METHOD.get(settings["method"], {})}
            said = {**settings, **{column: value for column, value in self.record.items() if not is_empty(value)}}
            for name, (field, values) in _ADO.items():
                value = values.get(said.get(name, "").lower(), said.get(name, ""))
                if value and comes_with.get(field) not in ("none", "bf16"):
                    comes_with[field] = value
            for field, value in {**settings, **comes_with}.items():
                if field in Workload.model_fields:
                    texts.setdefault(field, (value, "experiment_id"))
        for field in Workload.model_fields:
            value, column = texts.get(field, ("", field))
            try:
                yield field, _read_cached(field, value)
            except ValueError as error:
                if settings and field not in NUMBERS and value:  # the actuator has more of them than versions have
                    self.outside = str(error)
                elif self.record[NUMBER_GPUS] and _number(self.record[NUMBER_GPUS]) != 0:
                    self.problems.append(f"column {column}: {str(error).removeprefix(f'{field}: ')}")
                yield field, None

    def _check_together(self, ado: bool) -> None:
        try:
            check_together(self.job)
        except ValueError as error:
            if ado:
                self.outside = str(error)
            else:
                self.problems.append(str(error))

    def _read(self, column: str, how: Any) -> Any:
        try:
            return how(self.record[column])
        except ValueError as error:
            self.problems.append(f"column {column}: {str(error).removeprefix(f'{column}: ')}")
            return None

    def _figure(self, column: str, most: float) -> float | None:
        """The largest of a cell's numbers: ado lists the values of a point that was measured several times."""
        numbers = [_number(text) for text in _values(self.record.get(column, ""))]
        if any(not 0 <= number <= most or number == np.inf for number in numbers):
            allowed = "> 0" if most == np.inf else f"from 0 to {most:g}"
            self.problems.append(f"column {column}: must be a number {allowed}, got {self.record[column]!r}")
            return None
        return max(numbers, default=0.0) or None

    def _outcome(self) -> bool | None:
        """Whether the run finished; None where nothing says so, or both."""
        said = set()
        for column, finished in ((FAILED, False), (VALID, True)):
            for text in _values(self.record.get(column, "")):
                if text.lower() not in _YES_NO:
                    self.problems.append(f"column {column}: must be 0 or 1, got {text!r}")
                else:
                    said.add(_YES_NO[text.lower()] == finished)
        if said == {True, False} and all(self.record.get(column) for column in (FAILED, VALID)):
            self.problems.append(f"column {VALID}: contradicts {FAILED}")
        return said.pop() if len(said) == 1 else None if said else (self.allocated or self.in_use) is not None or None

    @property
    def says(self) -> bool:
        return self.finished is not None

    def seen(self) -> tuple[int, int, float, float]:
        """What a run that failed had allocated is no peak."""
        figures = (self.allocated, self.in_use and self.in_use / 100) if self.finished else (None, None)
        allocated, in_use = (np.nan if figure is None else figure for figure in figures)
        return self.line, int(bool(self.finished)), allocated, in_use


@cache
def _read_cached(field: str, text: str) -> Any:
    return read(field, text)


def _values(text: str) -> list[str]:
    """
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
    """The runs with what tells a way to train and its GPU, their size, and the job, whatever its number of GPUs."""
    runs = runs.assign(gpus=candidates.gpus, tokens=candidates.tokens_per_gpu)
    way = pd.DataFrame({"row": candidates.rows, "usable": candidates.usable_gib})
    runs["way"] = way.groupby(["row", "usable"], sort=False).ngroup()
    return runs.assign(
        job=way.assign(tokens=runs["gpus"] * runs["tokens"]).groupby([*way, "tokens"], sort=False).ngroup()
    )


def _without_duplicates(runs: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """One row for each job that ended in one way, with the largest figures, and the line of the first of them."""
    same = runs.groupby(["way", "gpus", "tokens", LABEL], sort=False)
    figures = {name: same[name].transform("max") for name in ("allocated_gib", "in_use_share")}
    first = ~runs.duplicated(["way", "gpus", "tokens", LABEL])
    return runs.assign(**figures)[first].reset_index(drop=True), np.flatnonzero(first)


def contradicting(predictor: Predictor, runs: pd.DataFrame, candidates: Candidates) -> list[int]:
    """Rows to leave out, so that no run is left that finished although a smaller one failed.

    Smaller is a run of the same way to train and as much memory, with at most as many tokens per GPU on at least as
    many GPUs, that the version says needs no more (a second GPU may need more than one). The row that contradicts most
    goes first, of several a failed one, of these the first.
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
