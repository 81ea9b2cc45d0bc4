"""What every command that asks about jobs does: read jobs, answer them, write the answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, BinaryIO

import pandas as pd
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from autoconf.cli.console import is_terminal, show_answer, show_answers
from autoconf.cli.options import exit_codes, note, version_named
from autoconf.cli.output import json_rows, output, write_csv, write_json
from autoconf.errors import BadInput
from autoconf.files import called
from autoconf.jobs.column_hints import doubts
from autoconf.jobs.job import NUMBERS, Job, Workload, read
from autoconf.jobs.presets import SETTINGS
from autoconf.jobs.queries import ARGUMENTS, Query
from autoconf.jobs.tables import check_jobs, earlier_answers, read_table
from autoconf.jobs.values import is_empty
from autoconf.predictor import registry

# Jobs answered between two updates of the progress bar; also what is in memory besides the table itself.
CHUNK = 10_000


@dataclass(frozen=True)
class Asking:
    """A question as a command asks it: of a table, and of one job as a table of one."""

    question: Query
    ask: Callable[..., pd.DataFrame]

    @property
    def options(self) -> list[str]:
        """The fields and numbers of one job; ``model_version`` first, which tables have as an option, too."""
        return ["model_version", *(field for field in self.question.fields if field != "model_version")]


def answered(table: pd.DataFrame, model_version: str | None, asking: Asking) -> Iterator[pd.DataFrame]:
    """Answer a checked table piece by piece: its columns, with the answers' columns appended.

    Raises:
        AutoConfError: a version that the table asks for is broken; before the first piece.
    """
    wanted = table["model_version"].unique() if "model_version" in table else [""] * min(len(table), 1)
    wanted = {read("model_version", text) or model_version or registry.DEFAULT for text in wanted}
    for version in wanted:
        with suppress(ValueError):  # there is no such version, which is said in each row
            registry.load(version)
    for start in range(0, max(len(table), 1), CHUNK):
        jobs = table.iloc[start : start + CHUNK]
        fields = [field for field in asking.question.all_fields if field in jobs]
        yield _beside(jobs, asking.ask(jobs[fields], model_version=model_version))


def _beside(jobs: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """Jobs with their answers; one that has several is repeated."""
    return pd.concat(
        [jobs.loc[answers.index].reset_index(drop=True), answers.reset_index(drop=True)], axis=1
    ).set_index(answers.index)


def _watched(pieces: Iterable[pd.DataFrame], total: int) -> Iterator[pd.DataFrame]:
    """Show progress on standard error where a person watches a long table."""
    columns = TextColumn("answering"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    hidden = total <= CHUNK or not is_terminal(sys.stderr)
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("", total=total)
        for piece in pieces:
            yield piece
            bar.advance(task, piece.index.nunique())


def job_option(question: Query, field: str) -> Any:
    """The option for a field of a question's jobs, or for a number beside them."""
    default = question.optional.get(field) or ("the newest" if field == "model_version" else None)
    panel = "How it trains" if field in ("stack", *SETTINGS) else "One job" if field != "model_version" else None
    description = ARGUMENTS.get(field) or Workload.model_fields[field].description
    return typer.Option(
        f"--{field.replace('_', '-')}",
        help=escape(f"{description}{f' (default: {default})' if default else ''}."),
        metavar="INTEGER" if field in (*NUMBERS, *ARGUMENTS) else "TEXT",
        show_default=False,
        rich_help_panel=panel,
    )


CsvFile = Annotated[
    str | None,
    typer.Option(
        "--csv", metavar="FILE", show_default=False, help="Jobs, one a line, below the column names; - is stdin."
    ),
]


OutputFile = Annotated[
    str | None,
    typer.Option("--output", "-o", metavar="FILE", show_default=False, help="Where answers go; by default stdout."),
]


AsJson = Annotated[bool, typer.Option("--json", help="Write JSON instead of CSV or a table.")]


def _given(asking: Asking, context: typer.Context) -> dict[str, str]:
    """The fields and numbers of one job that the command line has."""
    return {field: context.params[field] for field in asking.options if not is_empty(context.params[field])}


def answer(
    asking: Asking, context: typer.Context, csv_file: str | None, output_file: str | None, as_json: bool
) -> None:
    """What the command of a question does."""
    job = _given(asking, context)
    with exit_codes():
        if csv_file is None:
            _answer_one(asking, job, output_file, as_json)
        else:
            version = job.pop("model_version", None)
            if job:
                options = ", ".join(f"--{field.replace('_', '-')}" for field in job)
                raise BadInput(f"{options}: for one job only; with --csv these are columns of the file")
            _answer_table(asking, csv_file, version, output_file, as_json)


def _answer_one(asking: Asking, fields: dict[str, Any], output_file: str | None, as_json: bool) -> None:
    question = asking.question
    _, answers, shown = _answered_one(asking, fields)
    ranked = "rank" in question.answers
    if output_file is None and not as_json and is_terminal(sys.stdout):
        if ranked:
            show_answers(shown, question)
        else:
            show_answer(shown[0], question)
        return
    with output(output_file) as stream:
        if as_json:
            _write_json(shown if ranked else shown[0], stream)
        else:
            write_csv([answers], stream)


def _answered_one(asking: Asking, fields: dict[str, Any]) -> tuple[Job, pd.DataFrame, list[dict[str, Any]]]:
    """One job, its answers as a table, and as they are shown."""
    question = asking.question
    try:
        job, numbers = question.parse({"model_version": registry.DEFAULT, **fields})
    except ValueError as error:
        hint = "" if fields else "; give --csv FILE, or one job by options (see --help)"
        raise BadInput(f"{error}{hint}") from None
    known = {**question.optional, **job.model_dump(exclude_unset=True), **numbers}
    given = [field for field in question.fields if known[field] is not None]
    table = pd.DataFrame({field: [known[field]] for field in given}, dtype=object)
    answers = _beside(table, asking.ask(table))
    return job, answers, [{**row, "training_stack": job.stack_name()} for row in json_rows(answers)]


def _write_json(shown: Any, stream: BinaryIO) -> None:
    stream.write(f"{json.dumps(shown, indent=2, ensure_ascii=False)}\n".encode())


def _answer_table(
    asking: Asking, csv_file: str, model_version: str | None, output_file: str | None, as_json: bool
) -> None:
    question = asking.question
    model_version = version_named(model_version)
    table = read_table(csv_file)
    check_jobs(table, called(csv_file), question)
    earlier = earlier_answers(table, question)
    if earlier:
        note(f"{called(csv_file)}: earlier answers, replaced by new ones: {', '.join(earlier)}")
        if "rank" in earlier:  # each job once again
            table = table[table["rank"] == "1"]
        table = table.drop(columns=earlier)
    ignored = [column or "(without a name)" for column in table if column not in question.all_fields]
    if ignored:
        note(f"{called(csv_file)}: columns carried through, but ignored: {', '.join(ignored)}")
    for sentence in doubts(table, question):
        note(f"{called(csv_file)}: {sentence}")
    with output(output_file) as stream:
        pieces = answered(table, model_version, asking)
        first = next(pieces)  # a broken version shows here, before anything is written
        write = write_json if as_json else write_csv
        write(_watched(chain([first], pieces), len(table)), stream)
