"""Arrange many answers for a picture: read them from a table (``points``, ``choose``) and lay them out (``chart``)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from autoconf.jobs.ado_experiments import EXPERIMENT, settings_in
from autoconf.jobs.job import BATCHES, NUMBERS, OPTIONAL, REQUIRED, choices, read
from autoconf.jobs.presets import SETTINGS as OF_STACK
from autoconf.jobs.values import is_empty, name, whole_number
from autoconf.predictor.registry import RELEASED, card

NO_RECOMMENDATION = 0
MISSING = -1  # a point without an answer, or whose measurement failed

# Settings that have a single value in one picture, unless its panels differ in them; a file may have several values.
SETTINGS = (EXPERIMENT, "model_name", "method", "gpu_model", *(field for field in OPTIONAL if field not in BATCHES))
PANELS = ("model_name", "method")
POINT = (*REQUIRED, "batch_size")
SEPARATOR = "  ·  "  # between the settings that a picture names


# --- reading ----------------------------------------------------------------------------------------------------------


def points(answers: pd.DataFrame) -> pd.DataFrame:
    """Read the answers of ``ado-autoconf recommend``, or an export of ado in either of its property formats.

    Args:
        answers: cells as text, the index the number of each row's line in its file.

    Returns:
        Columns ``tokens_per_sample``, ``batch_size``, those of ``SETTINGS`` that there are or that have a default, and
        ``total``: GPUs in total, ``NO_RECOMMENDATION`` or ``MISSING``.

    Raises:
        ValueError: a column is missing, or a cell cannot be read; the message starts with the line.

    >>> row = {"model_name": "llama-7b", "method": "lora", "gpu_model": "L40S", "tokens_per_sample": "512",
    ...        "batch_size": "16", "can_recommend": "1", "gpus": "8", "workers": "2"}
    >>> points(pd.DataFrame([row], index=[2]))["total"].tolist()
    [16]
    """
    table = _one_row_per_answer(answers)
    missing = [column for column in (*POINT, "can_recommend") if column not in table]
    if missing:
        found = ", ".join(map(str, answers.columns))
        raise ValueError(f"line 1: required column missing: {', '.join(missing)}; the table has {found}")
    values = {
        field: _cells(table, [field], _reader(field)) for field in dict.fromkeys(POINT + SETTINGS) if field in table
    }
    experiments = values.get(EXPERIMENT, [""] * len(table))
    for field in SETTINGS:
        if field not in values and field in OPTIONAL:
            settings = [_set_by_experiment(field, experiment) or OPTIONAL[field] for experiment in experiments]
            if any(settings):
                values[field] = [setting or "" for setting in settings]
    # If no answer has a recommendation, ado's export lacks these columns.
    outputs = table.reindex(columns=["can_recommend", "gpus", "workers"], fill_value="")
    return pd.DataFrame({**values, "total": _cells(outputs, list(outputs), _total)}, index=table.index)


def _set_by_experiment(field: str, experiment: str) -> Any:
    """The value of an optional field of an experiment, which ado stores only in the name of the experiment.

    >>> _set_by_experiment("max_gpus", "custom_experiments.min_gpu_recommender-gpus_per_worker.4-max_gpus.64")
    64
    >>> _set_by_experiment("stack", "custom_experiments.min_gpu_recommender-stack.fms-hf-tuning-max_gpus.64")
    'fms-hf-tuning'
    """
    text = settings_in(experiment).get(field)
    return text and read(field, text)


def _one_row_per_answer(answers: pd.DataFrame) -> pd.DataFrame:
    """Split ado's "observed" format, with a column ``<experiment>-gpus`` for each property, into one row per answer."""
    suffix = "-can_recommend"
    if "can_recommend" in answers or not any(column.endswith(suffix) for column in answers):
        return answers
    experiments = [column.removesuffix(suffix) for column in answers if column.endswith(suffix)]
    return pd.concat(
        answers.rename(
            columns={f"{experiment}-{output}": output for output in ("can_recommend", "gpus", "workers")}
        ).assign(**{EXPERIMENT: experiment})
        for experiment in experiments
    ).fillna("")  # an experiment that never recommended has no columns for gpus and workers


def _cells(table: pd.DataFrame, columns: list[str], read: Callable[..., Any]) -> list[Any]:
    """Read the cells of some columns in each row; rows with the same texts are read once."""
    read = cache(read)
    values = []
    for line, *texts in table[columns].itertuples(name=None):
        try:
            values.append(read(*texts))
        except ValueError as error:
            raise ValueError(f"line {line}: {error}") from None
    return values


def _reader(field: str) -> Callable[[str], Any]:
    """The function that reads the text of a field; empty text means that the file does not set the field."""
    if field == EXPERIMENT:
        return lambda text: "" if is_empty(text) else name(field, text)
    if field == "batch_size":
        return lambda text: whole_number(field, text)
    return lambda text: read(field, text) or ""


def _total(can_recommend: str, gpus: str, workers: str) -> int:
    """The total number of GPUs of one answer."""
    can_recommend, gpus, workers = map(_measured, (can_recommend, gpus, workers))
    if not can_recommend:
        return MISSING
    if can_recommend in ("0", "0.0"):
        return NO_RECOMMENDATION
    if can_recommend not in ("1", "1.0"):
        raise ValueError(f"can_recommend: must be 0 or 1, got {can_recommend[:80]!r}")
    return whole_number("gpus x workers", whole_number("gpus", gpus) * whole_number("workers", workers))


def _measured(text: str) -> str:
    """The value in a cell of an export of ado; a point measured several times has a list such as ``[1, 1]``."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        values = {value.strip() for value in text[1:-1].split(",")}
        text = values.pop() if len(values) == 1 else text
    return "" if text.lower() in ("nan", "none", "<na>") else text


def panels_of(text: str) -> tuple[str, ...]:
    """Read the settings that the panels of a picture differ in.

    Args:
        text: some of ``SETTINGS``, at least one, with commas between them; empty text is ``PANELS``.

    Raises:
        ValueError: it is none of them, or is there twice.

    >>> panels_of("model_name, stack")
    ('model_name', 'stack')
    """
    fields = tuple(field.strip() for field in text.split(",")) if text.strip() else PANELS
    for field in fields:
        if field not in SETTINGS:
            raise ValueError(f"panels: {field!r} is none of {', '.join(SETTINGS)}")
    if len(set(fields)) < len(fields):
        raise ValueError(f"panels: {text!r} has one of them twice")
    return fields


def choose(
    points: pd.DataFrame, wanted: Mapping[str, str], panels: Sequence[str] = PANELS
) -> tuple[pd.DataFrame, list[str]]:
    """Keep the answers of one GPU type, version and so on: the wanted one, or else the first one in the file.

    Args:
        points: a table from ``points``.
        wanted: the value to keep for some of ``SETTINGS``, as text.
        panels: those of ``SETTINGS`` that may keep several values.

    Returns:
        The answers that are kept, and a sentence for each setting that was chosen by default.

    Raises:
        ValueError: the file has no answer with a wanted value.
    """
    notes = []
    for setting in sorted(
        SETTINGS, key=lambda setting: setting not in wanted
    ):  # wanted settings first, as they leave fewer values of the others
        found = points[setting].drop_duplicates().tolist() if setting in points else []
        if setting in wanted:
            value = _reader(setting)(wanted[setting])
            if value not in found:
                raise ValueError(f"{setting}: no answer for {value!r}; there are answers for {_listed(found)}")
        elif len(found) > 1 and setting not in panels:
            value = found[0]
            notes.append(f"{setting}: drawing {value!r}, the first of {_listed(found)}; choose with {option(setting)}")
        else:
            continue
        points = points[points[setting] == value]
    return points, notes


def option(setting: str) -> str:
    """The command's option for a setting.

    >>> option("gpu_model")
    '--gpu-model'
    """
    return "--experiment" if setting == EXPERIMENT else f"--{setting.replace('_', '-')}"


def _listed(values: list[Any]) -> str:
    shown = ", ".join(map(repr, values[:10]))
    return shown if len(values) <= 10 else f"{shown} and {len(values) - 10} more"


# --- arithmetic -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chart:
    """Groups of panels, such as one panel per method of a model, all over the same tokens and batches."""

    subtitle: str
    tokens: list[int]
    batches: list[int]
    groups: list[str]
    members: list[str]
    panels: dict[tuple[str, str], np.ndarray]  # (group, member) -> totals, shape (batches, tokens)
    groups_in_row: int = 0  # 0: as many as give the picture usual proportions


def chart(points: pd.DataFrame, panels_of: Sequence[str] = PANELS) -> Chart:
    """Arrange answers into panels.

    Args:
        points: a table from ``choose``, with one value of each setting that is not in ``panels_of``.
        panels_of: the settings that panels differ in: within a group in the last one, groups in those before it. Of
            four or more, groups that differ in the third last one alone are in one row.

    Raises:
        ValueError: there is no answer, or there are two different ones for one point, or no answer has such a setting.
    """
    if points.empty:
        raise ValueError("there are no answers to draw")
    absent = [field for field in panels_of if field not in points]
    if absent:
        raise ValueError(f"panels: no answer says its {', '.join(absent)}")
    tokens, batches = (sorted(set(points[field])) for field in ("tokens_per_sample", "batch_size"))
    column, row = ({value: index for index, value in enumerate(values)} for values in (tokens, batches))
    panels: dict[tuple[str, str], np.ndarray] = {}
    places: dict[tuple[str, str], tuple[Any, ...]] = {}
    lines: dict[tuple[Any, ...], int] = {}
    axes = ["tokens_per_sample", "batch_size", "total"]
    for line, *of, t, b, total in points[[*panels_of, *axes]].itertuples(name=None):
        *before_last, member = (label(field, value) for field, value in zip(panels_of, of, strict=True))
        group = SEPARATOR.join(before_last)
        places.setdefault(
            (group, member), tuple(_rank(field, value) for field, value in zip(panels_of, of, strict=True))
        )
        totals = panels.setdefault((group, member), np.full((len(batches), len(tokens)), MISSING))
        before = totals[row[b], column[t]]
        if total == MISSING:
            continue
        if before not in (MISSING, total):
            what, other = ", ".join(filter(None, (group, member))), lines[group, member, t, b]
            raise ValueError(f"line {line}: {what}, {t} tokens, batch {b}: line {other} answers otherwise")
        totals[row[b], column[t]] = total
        lines[group, member, t, b] = line
    groups = {group: place[:-1] for (group, _), place in places.items()}
    members = {member: place[-1:] for (_, member), place in places.items()}
    across = 0
    if len(panels_of) > 3:
        groups = {group: (*rest, last, column) for group, (*rest, column, last) in groups.items()}
        columns = {place[-1] for place in groups.values()}
        across = len(columns) if len(groups) % len(columns) == 0 else 0
    first, second = (sorted(places, key=places.__getitem__) for places in (groups, members))
    return Chart(_subtitle(points, panels_of), tokens, batches, first, second, panels, across)


def _rank(field: str, value: Any) -> tuple[Any, ...]:
    """The sort key of a setting's values: no value first, choices in their own order, names in natural order."""
    if value == "":
        return (-1,)
    known = choices(field) if field in OF_STACK and field not in NUMBERS else ()
    return (0, known.index(value)) if value in known else (1, _natural(str(value)))


# Labels of values that are not clear by themselves; "full" is also a method.
_CALLED = {
    ("loss", "full"): "all logits",
    ("loss", "chunked"): "chunked loss",
    ("gradient_checkpointing", "none"): "no checkpointing",
    ("gradient_checkpointing", "reentrant"): "reentrant checkpointing",
    ("gradient_checkpointing", "non-reentrant"): "non-reentrant checkpointing",
    ("gradient_checkpointing", "offloaded"): "offloaded checkpoints",
}


def label(field: str, value: Any) -> str:
    """The label of a setting's value in the title of a panel.

    >>> label("loss", "full"), label("method", "full"), label("optim", "")
    ('all logits', 'full', 'optim by default')
    """
    return _CALLED.get((field, value)) or str(value) or f"{field} by default"


def _natural(text: str) -> list[tuple[int, Any]]:
    """A sort key that puts llama-7b before llama-13b."""
    parts = re.split(r"(\d+)", text.lower())
    return [(0, int(part)) if index % 2 else (1, part) for index, part in enumerate(parts)]


def _subtitle(points: pd.DataFrame, panels_of: Sequence[str]) -> str:
    """The settings of the whole picture."""
    words = {
        "model_name": "{}",
        "method": "{}",
        "gpu_model": "{}",
        "model_version": "version {}",
        "gpus_per_worker": "{} GPUs per worker",
        "max_gpus": "at most {} GPUs considered",
        "gradient_accumulation_steps": "{} gradient accumulation steps",
        "stack": "stack {}",
        **{setting: f"{setting} {{}}" for setting in OF_STACK},
    }
    values = {setting: points[setting].iloc[0] for setting in words if setting in points and setting not in panels_of}
    made_from = (values.get("model_version") or "").partition("+")[0]  # a user version has the limits of this version
    if made_from in RELEASED:  # a version does not consider more GPUs than its limit
        values["max_gpus"] = min(values["max_gpus"], card(made_from).domain.max_gpus)
    if values.get("stack") == OPTIONAL["stack"]:
        del values["stack"]
    return SEPARATOR.join(words[setting].format(value) for setting, value in values.items() if value != "")


def step(total: int) -> int:
    """The color step of a number of GPUs: one for each doubling.

    >>> [step(total) for total in (1, 2, 3, 4, 5, 8, 64)]
    [0, 1, 2, 2, 3, 3, 6]
    """
    return (total - 1).bit_length()


def steps(totals: Iterable[int]) -> dict[int, str]:
    """The color steps that occur among numbers of GPUs, with the numbers that each step covers.

    >>> steps([1, 8, 5, 2])
    {0: '1', 1: '2', 3: '5-8'}
    """
    present: dict[int, list[int]] = {}
    for total in sorted(set(totals)):
        present.setdefault(step(total), []).append(total)
    return {s: f"{t[0]}" if len(t) == 1 else f"{t[0]}-{t[-1]}" for s, t in present.items()}


def short(number: int) -> str:
    """The label of a number of tokens.

    >>> short(512), short(16384), short(5000)
    ('512', '16k', '5000')
    """
    return f"{number // 1024}k" if number % 1024 == 0 else str(number)
