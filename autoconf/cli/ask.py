"""Answer a query from the command line: read one job or a table of jobs, answer, and write the answers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pandas as pd
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from autoconf.cli.console import is_terminal, show_answer, show_answers
from autoconf.cli.job_file import provenance_cells
from autoconf.cli.options import ExitCode, note, version_named
from autoconf.cli.output import json_rows, output, write_csv, write_json, write_object
from autoconf.errors import BadInput
from autoconf.files import STANDARD_STREAM, called
from autoconf.jobs.column_hints import hints
from autoconf.jobs.job import NAMES, Job, read
from autoconf.jobs.queries import NOTES, Query
from autoconf.jobs.tables import check_jobs, earlier_answers, read_table
from autoconf.predictor import registry
from autoconf.predictor.user_versions import NoModelsFolder

# Jobs per update of the progress bar; only this many answers are in memory at a time.
CHUNK = 10_000


@dataclass(frozen=True)
class CommandQuery:
    """A query, and the function of the Python API that answers it."""

    query: Query
    ask: Callable[..., pd.DataFrame]


@dataclass(frozen=True)
class OutputOptions:
    """The output options of a command: file, format, and exit code."""

    file: str | None
    as_json: bool
    as_csv: bool
    fail_on_no: bool

    @classmethod
    def of(cls, context: typer.Context) -> OutputOptions:
        given = context.params
        return cls(given["output_file"], given["as_json"], given["as_csv"], given["fail_on_no"])

    def end(self, no: bool) -> None:
        """End the command with a failure if the answer is "no" and --fail-on-no was given."""
        if no and self.fail_on_no:
            raise typer.Exit(ExitCode.ANSWERED_NO)


def answered(table: pd.DataFrame, model_version: str | None, command: CommandQuery) -> Iterator[pd.DataFrame]:
    """Answer a checked table in pieces: its columns, with the output columns appended.

    Raises:
        AutoConfError: a version that the table names is broken; raised before the first piece.
    """
    wanted = table["model_version"].unique() if "model_version" in table else [""] * min(len(table), 1)
    wanted = {read("model_version", text) or model_version or registry.DEFAULT for text in wanted}
    for version in wanted:
        with suppress(ValueError, NoModelsFolder):  # a version that is not there is the reason of its rows
            registry.load(version)
    for start in range(0, max(len(table), 1), CHUNK):
        jobs = table.iloc[start : start + CHUNK]
        fields = [field for field in command.query.all_fields if field in jobs]
        answers = command.ask(jobs[fields], model_version=model_version)
        if not start:
            noted = _has_notes(answers, table, command, model_version)
        found = answers[list(command.query.answers)]
        yield _with_answers(jobs, found.assign(**{NOTES: answers.get(NOTES, "")}) if noted else found)


def _has_notes(first: pd.DataFrame, table: pd.DataFrame, command: CommandQuery, model_version: str | None) -> bool:
    """Whether the answers get a column of notes: some answer has notes, and the table itself has no such column."""
    if NOTES in table or NOTES in first:
        return NOTES not in table
    rest = table.iloc[CHUNK:]
    names = [field for field in NAMES if field in rest]  # they decide whether there are notes
    fields = [field for field in command.query.all_fields if field in rest]
    return NOTES in command.ask(rest.drop_duplicates(names)[fields], model_version=model_version)


def _with_answers(jobs: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """Jobs with their answers; a job with several answers is repeated."""
    return pd.concat(
        [jobs.loc[answers.index].reset_index(drop=True), answers.reset_index(drop=True)], axis=1
    ).set_index(answers.index)


def _watched(pieces: Iterable[pd.DataFrame], total: int) -> Iterator[pd.DataFrame]:
    """Show progress on standard error if it is a terminal and the table is long."""
    columns = TextColumn("answering"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    hidden = total <= CHUNK or not is_terminal(sys.stderr)
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("", total=total)
        for piece in pieces:
            yield piece
            bar.advance(task, piece.index.nunique())


def answer_one(
    command: CommandQuery, fields: dict[str, Any], to: OutputOptions, provenance: Mapping[str, Any] | None = None
) -> None:
    """Write the answer about one job: as text, unless another format or a file is given.

    Args:
        command: The query.
        fields: The fields of the job.
        to: The output options.
        provenance: The sources of the fields; JSON and CSV include them.
    """
    query = command.query
    _, answers, shown = answered_one(command, fields)
    ranked = "rank" in query.answers
    with output(to.file) as stream:
        if to.as_json:
            write_object(shown if ranked else {**shown[0], **(provenance or {})}, stream)
        elif to.as_csv or to.file not in (None, STANDARD_STREAM):
            write_csv([answers.assign(**provenance_cells(provenance or {}))], stream)
        elif ranked:
            show_answers(shown, query)
        else:
            show_answer(shown[0], query)
    to.end(says_no(answers, query))


def answered_one(command: CommandQuery, fields: dict[str, Any]) -> tuple[Job, pd.DataFrame, list[dict[str, Any]]]:
    """Answer one job; return the job, its answers as a table, and the answers to show."""
    query = command.query
    try:
        job, numbers = query.parse({"model_version": registry.DEFAULT, **fields})
    except ValueError as error:
        hint = "" if fields else "; give --csv FILE, or one job by options (see --help)"
        raise BadInput(f"{error}{hint}") from None
    known = {**query.optional, **job.model_dump(exclude_unset=True), **numbers}
    given = {field: known[field] for field in query.fields if known[field] is not None}
    if "rank" in query.answers:  # the API ranks types of GPU for tables only
        table = pd.DataFrame({field: [value] for field, value in given.items()}, dtype=object)
        answers = _with_answers(table, command.ask(table))
        shown = [{**row, "notes": _sentences(row.get("notes"))} for row in json_rows(answers)]
    else:
        found = command.ask(job, **numbers)
        row = {**given, **{name: getattr(found, name) for name in query.answers}}
        joined = {"notes": "; ".join(found.notes)} if found.notes else {}
        answers = pd.DataFrame([{**row, **joined}], dtype=object)
        shown = [{**row, "notes": list(found.notes)}]
    return job, answers, [{**row, "training_stack": job.stack_name()} for row in shown]


def _sentences(notes: str | None) -> list[str]:
    """The notes in a cell of a table of answers."""
    return notes.split("; ") if notes else []


def says_no(answers: pd.DataFrame, query: Query) -> bool:
    """Whether the answer for any job is "no"; of ranked answers, the first one counts.

    >>> says_no(pd.DataFrame({"can_recommend": [1, 0]}), Query(("can_recommend",)))
    True
    >>> says_no(pd.DataFrame({"can_recommend": [1, 0], "rank": [1, 2]}), Query(("can_recommend",)))
    False
    """
    no = ~answers[query.answers[0]].eq(1).fillna(False).astype(bool)
    if "rank" in answers:
        no &= answers["rank"].isna() | answers["rank"].eq(1).fillna(False).astype(bool)
    return bool(no.any())


def _with_lists(pieces: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """Convert the notes on each answer to a list, as in the JSON about one job."""
    for piece in pieces:
        yield piece.assign(**{NOTES: piece[NOTES].map(_sentences)}) if NOTES in piece else piece


def answer_table(command: CommandQuery, csv_file: str, model_version: str | None, to: OutputOptions) -> None:
    """Answer a table of jobs, and write it with the answers.

    Raises:
        BadInput: the table cannot be read, or a job in it is invalid.
    """
    query = command.query
    model_version = version_named(model_version)
    table = read_table(csv_file)
    check_jobs(table, called(csv_file), query)
    earlier = earlier_answers(table, query)
    if earlier:
        note(f"{called(csv_file)}: earlier answers, replaced by new ones: {', '.join(earlier)}")
        if "rank" in earlier:  # the table has several rows per job; keep one
            table = table[table["rank"] == "1"]
        table = table.drop(columns=earlier)
    ignored = [column or "(without a name)" for column in table if column not in query.all_fields]
    if ignored:
        note(f"{called(csv_file)}: columns carried through, but ignored: {', '.join(ignored)}")
    for sentence in hints(table, query):
        note(f"{called(csv_file)}: {sentence}")
    no = False

    def noticing_no(pieces: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        nonlocal no
        for piece in pieces:
            no = no or says_no(piece, query)
            yield piece

    with output(to.file) as stream:
        pieces = answered(table, model_version, command)
        first = next(pieces)  # a broken version raises here, before anything is written
        found = noticing_no(_watched(chain([first], pieces), len(table)))
        if to.as_json:
            write_json(found if NOTES in table else _with_lists(found), stream)
        else:
            write_csv(found, stream)
    to.end(no)
