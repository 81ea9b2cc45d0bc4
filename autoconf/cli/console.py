"""Print answers, versions, stacks and user models as text."""

from __future__ import annotations

import io
import shlex
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from autoconf.jobs.job import TRAINING_STACK
from autoconf.jobs.names import families, listed
from autoconf.jobs.presets import Preset
from autoconf.jobs.queries import MIN_GPUS, Query
from autoconf.planner.estimate import probability_text
from autoconf.predictor import registry
from autoconf.predictor.cards import Card


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a standard stream is a terminal; ``None`` is a stream that the shell closed (``>&-``)."""
    return stream is not None and stream.isatty()


def show_answer(answer: dict[str, Any], query: Query = MIN_GPUS) -> None:
    """Print one job and its answer."""
    table = Table(show_header=False, box=box.SIMPLE, pad_edge=False)
    for field in _job_fields(answer, query):
        table.add_row(field, escape(_job_text(field, answer[field])))
    table.add_section()
    for field, text in _answer_texts(answer, query):
        table.add_row(field, escape(text), style="bold")
    _print(table)
    _show_notes(answer["notes"])


def _answer_texts(answer: dict[str, Any], query: Query) -> Iterator[tuple[str, str]]:
    """The fields of an answer that have a value, and their texts; ``fits`` includes the probability."""
    estimated = answer.get("fits") is not None and answer.get("probability") is not None
    for field in (*query.answers, "training_stack"):
        if field == "fits" and estimated:
            threshold = registry.card(answer["model_version"]).threshold
            yield field, f"{answer[field]} ({probability_text(answer['probability'], threshold)})"
        elif not (field == "probability" and estimated) and answer[field] not in (None, ""):
            yield field, _job_text(field, answer[field]) if field in _COUNTED else _text(answer[field])


def show_replay(answer: dict[str, Any], notes: Iterable[str]) -> None:
    """Print one job and the result of a replay of its allocations; a note says whether expandable segments help."""
    table = Table(show_header=False, box=box.SIMPLE, pad_edge=False)
    fields = list(answer)
    first = fields.index("peak_memory_gib")
    for field in fields[:first]:
        table.add_row(field, escape(str(answer[field])))
    table.add_section()
    for field in fields[first:]:
        if answer[field] != "" and not isinstance(answer[field], bool):
            table.add_row(field, escape(_text(answer[field])), style="bold")
    _print(table)
    _show_notes(notes)


def show_answers(answers: list[dict[str, Any]], query: Query) -> None:
    """Print one job and its ranked answers, the best one first."""
    fields = _job_fields(answers[0], query)
    typer.echo(", ".join(f"{field} {answers[0][field]}" for field in (*fields, "training_stack")) + "\n")
    _print(_table([{name: _ranked_text(name, answer[name]) for name in query.answers} for answer in answers]))
    _show_notes(dict.fromkeys(sentence for answer in answers for sentence in answer["notes"]))


def _ranked_text(name: str, value: Any) -> str:
    """The text of a value in a ranking; a million tokens cost a few cents, of which two decimals show too little.

    >>> _ranked_text("cost", 12.345), _ranked_text("cost_per_million_tokens", 0.0912)
    ('12.35', '0.0912')
    """
    return f"{value:.4f}" if name == "cost_per_million_tokens" and value is not None else _text(value)


def show_rows(rows: list[dict[str, Any]]) -> None:
    """Print rows as a table, whose columns are those of the first row."""
    _print(_table([{name: _text(value) for name, value in row.items()} for row in rows]))


def _show_notes(notes: Iterable[str]) -> None:
    """Print the notes on an answer."""
    columns = shutil.get_terminal_size().columns if is_terminal(sys.stdout) else sys.maxsize
    for sentence in notes:
        typer.echo(textwrap.fill(f"note: {sentence}", columns, break_on_hyphens=False))


def _job_fields(answer: dict[str, Any], query: Query) -> list[str]:
    """The fields and arguments of the job in an answer."""
    fields = query.all_fields
    return [field for field in fields if field in answer and field not in query.answers]


_COUNTED = {
    "per_device_train_batch_size": "samples per micro-batch on each GPU",
    "batch_size": "samples per micro-batch over all GPUs",
}


def _job_text(field: str, value: Any) -> str:
    """The value of a job's field; a batch includes its unit.

    >>> _job_text("batch_size", 16)
    '16 samples per micro-batch over all GPUs'
    """
    return f"{value} {_COUNTED[field]}" if field in _COUNTED else str(value)


def _text(value: Any) -> str:
    """The text of a value; GiB and prices have two decimals."""
    if value is None:
        return ""
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def show_summary(card: Card, default: bool) -> None:
    """Print the domain and the main figures of a version; one line if it is not the default."""
    domain, evaluation = card.domain, card.evaluation
    if not default:
        counts = f"{len(domain.models)} models, {listed(domain.methods)}, {len(domain.gpus)} GPU types"
        typer.echo(f"version {card.version}, made {_made(card)}: {counts}\n")
        return
    by_number = sorted(families(domain.models).items(), key=lambda family: -len(family[1]))
    models = (f"{len(names)} {family}" for family, names in by_number)
    _show_heading(card, default)
    for title, text in {
        "models": f"{len(domain.models)}: {', '.join(models)}",
        "methods": ", ".join(domain.methods),
        "GPUs": f"{len(domain.gpus)}: {', '.join(_series(domain.gpus))}",
        "limits": f"up to {domain.max_tokens_per_sample:,} tokens per sample, batch size {domain.max_batch_size:,}, "
        f"{domain.max_gpus} GPUs",
        "stack": "set by the job; ado-autoconf stacks lists them",
        "figures": "; ".join(f"{name}: {value:g} %" for name, value in [*evaluation.get("figures", {}).items()][:2]),
    }.items():
        _show_paragraph(f"{title:9}", text)
    typer.echo(f"{'more':9}ado-autoconf versions {card.version} [--models]\n")


def _series(gpus: Iterable[str]) -> list[str]:
    """GPU types by series, largest first, with their numbers.

    >>> _series(["NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-80GB-PCIe", "L40S", "Tesla-T4"])
    ['2 A100', '1 L40S', '1 T4']
    """
    names = (name.removeprefix("NVIDIA-").removeprefix("Tesla-").removeprefix("AMD-Instinct-") for name in gpus)
    return [f"{count} {series}" for series, count in Counter(name.split("-")[0] for name in names).most_common()]


def show_version(card: Card, default: bool) -> None:
    """Print everything about a version except the names of its models."""
    _show_heading(card, default)
    _show_paragraph("", f"Answers hold for {TRAINING_STACK}.")
    typer.echo()
    domain = card.domain.model_dump()
    limits = {key: value for key, value in domain.items() if key not in ("models", "gpus", "methods")}
    for rows in (
        [
            {"GPU": gpu, "usable memory": f"{g['usable_gib']:g} GiB", "also known as": ", ".join(g["aliases"])}
            for gpu, g in domain["gpus"].items()
        ],
        [{"method": method} for method in domain["methods"]],
        [{"limit": limit, "": value} for limit, value in limits.items()],
        *figure_tables(card.evaluation),
    ):
        _print(_table(rows))
        typer.echo()


def show_models(card: Card, default: bool) -> None:
    """Print a version's models and their other names, one per line."""
    _show_heading(card, default)
    for name, model in card.domain.models.items():
        limit = model.max_tokens_per_sample
        typer.echo(name if limit is None else f"{name} (up to {limit:,} tokens per sample)")
        for alias in model.aliases:
            typer.echo(f"    {alias}")
    for name, tower in card.domain.vision_language.items():
        typer.echo(f"{name} (with a frozen vision tower, beside the shapes of {tower.language_model})")
        for alias in tower.aliases:
            typer.echo(f"    {alias}")


def show_own_version(made: dict[str, Any]) -> None:
    """Print a new user version: its folder, what was learned, its evaluation, and how to use it."""
    typer.echo(f"made version {made['version']} of {made['models']} models in {made['folder']}\n")
    for rows in figure_tables(
        {name: made[name] for name in made if name not in ("version", "folder", "sha256", "models")}
    ):
        _print(_table(rows))
        typer.echo()
    typer.echo(f"sha256 of its card: {made['sha256']}")
    typer.echo(f"to use it: export AUTOCONF_MODELS={shlex.quote(str(Path(made['folder']).resolve().parent))}")


def show_stack(name: str, preset: Preset) -> None:
    """Print the settings of a stack with their sources."""
    typer.echo(f"{name}: {preset.description}\n")
    rows = [{"setting": setting, "value": it.value, "source": it.source} for setting, it in preset.settings.items()]
    for case in preset.cases:
        where = ", ".join(f"{field} {value}" for field, value in case.when.items())
        rows += [
            {"setting": setting, "value": f"{it.value} where {where}", "source": it.source}
            for setting, it in case.settings.items()
        ]
    _print(_table(rows))
    typer.echo()


def show_own_model(summary: dict[str, Any]) -> None:
    """Print the memory needs of a user model, and the next command."""
    typer.echo(f"{summary['model_name']}: {summary['parameters']:,} parameters\n")
    costs = summary["gib_per_1000_tokens"]
    _print(
        _table(
            [
                {"GiB per 1,000 tokens": stack, **{method: _or_dash(cost, ".3f") for method, cost in of_method.items()}}
                for stack, of_method in costs.items()
            ]
        )
    )
    for stack in costs:
        rows: dict[str, dict[str, str]] = {}
        for job in summary["layouts"]:
            if job["stack"] == stack:
                layout = f"{job['workers']}x{job['gpus']}" if job["can_recommend"] else "-"
                row = rows.setdefault(job["gpu_model"], {f"{stack}: workers x GPUs": job["gpu_model"]})
                row[f"{job['method']} {job['tokens_per_sample']:,}"] = layout
        typer.echo()
        _print(_table(list(rows.values())))
    job = summary["layouts"][0]
    typer.echo(f"\nwith batch_size {job['batch_size']} and max_gpus {job['max_gpus']}; - means none")
    typer.echo(f"\n{summary['file']} has the figures; a version with this model:\n{summary['next']}")


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _show_heading(card: Card, default: bool) -> None:
    typer.echo(f"version {card.version}{', the default' if default else ''}, made {_made(card)}\n")


def _made(card: Card) -> str:
    return f"from {listed(card.made_from)}" if card.made_from else card.created


def _show_paragraph(start: str, text: str) -> None:
    """Print a paragraph as wide as the terminal, with a hanging indent, breaking lines only at spaces."""
    width = shutil.get_terminal_size().columns
    wrapped = textwrap.wrap(
        text, width, initial_indent=start, subsequent_indent=" " * len(start), break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
    typer.echo("\n".join(wrapped))


def _print(table: Table) -> None:
    """Print with the width and colors of a terminal, or as plain lines of any length elsewhere."""
    if is_terminal(sys.stdout):
        Console(highlight=False).print(table)
        return
    console = Console(file=io.StringIO(), force_terminal=False, width=100_000)
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        typer.echo(line.rstrip())


def _table(rows: list[dict[str, Any]]) -> Table:
    """Make a table from rows with the same keys; the first column is never wrapped."""
    table = Table(box=box.SIMPLE if is_terminal(sys.stdout) else None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, column in enumerate(rows[0] if rows else ()):
        table.add_column(escape(column), overflow="fold", no_wrap=index == 0)
    for row in rows:
        table.add_row(*(escape("" if value is None else str(value)) for value in row.values()))
    return table


def figure_tables(evaluation: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Convert the evaluation of a card to tables; a table is a list of rows with the same keys.

    >>> figure_tables({"jobs": 3960, "figures": {"same decision": {"value": 0.99, "required": 0.97}}})
    [[{'evaluation': 'jobs', '': 3960}], [{'figures': 'same decision', 'value': 0.99, 'required': 0.97}]]
    >>> figure_tables({"measured": {"runs": 270}, "by family": [{"family": "llama", "wrong %": 0.0}]})
    [[{'measured': 'runs', '': 270}], [{'family': 'llama', 'wrong %': 0.0}]]
    """
    alone = {key: value for key, value in evaluation.items() if not _is_table(value)}
    tables = [[{"evaluation": key, "": value} for key, value in alone.items()]] if alone else []
    for title, value in evaluation.items():
        if title not in alone:
            named = value.items() if isinstance(value, dict) else ((None, row) for row in value)
            rows = [
                ({} if key is None else {title: key}) | (inner if isinstance(inner, dict) else {"": inner})
                for key, inner in named
            ]
            columns = dict.fromkeys(column for row in rows for column in row)
            tables.append([{column: row.get(column) for column in columns} for row in rows])
    return tables


def _is_table(value: Any) -> bool:
    """Whether a value is a non-empty dict, or a non-empty list of dicts."""
    return bool(value) and (isinstance(value, dict) or (isinstance(value, list) and isinstance(value[0], dict)))
