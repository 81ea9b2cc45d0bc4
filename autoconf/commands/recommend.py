"""``ado-autoconf recommend``: the smallest number of GPUs, for a table of jobs or for one."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from typing import Annotated, Any

import pandas as pd
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from autoconf import versions
from autoconf.columns import doubts
from autoconf.commands.common import exit_codes, note, version_named, with_options
from autoconf.commands.job_file import job_from_files, write_patched
from autoconf.errors import BadInput
from autoconf.presets import SETTINGS
from autoconf.recommender import recommend
from autoconf.show import is_terminal, show_answer
from autoconf.tables import called, check_jobs, earlier_answers, json_rows, output, read_table, write_csv, write_json
from autoconf.workload import NUMBERS, OPTIONAL, Workload, is_empty, read

# Jobs answered between two updates of the progress bar; also what is in memory besides the table itself.
CHUNK = 10_000


def answered(table: pd.DataFrame, model_version: str | None) -> Iterator[pd.DataFrame]:
    """Answer a checked table piece by piece: its columns, with the answers' columns appended.

    Raises:
        AutoConfError: a version that the table asks for is broken; before the first piece.
    """
    wanted = table["model_version"].unique() if "model_version" in table else [""] * min(len(table), 1)
    wanted = {read("model_version", text) or model_version or versions.DEFAULT for text in wanted}
    for version in wanted:
        with suppress(ValueError):  # there is no such version, which is said in each row
            versions.load(version)
    for start in range(0, max(len(table), 1), CHUNK):
        jobs = table.iloc[start : start + CHUNK]
        fields = [field for field in Workload.model_fields if field in jobs]
        yield pd.concat([jobs, recommend(jobs[fields], model_version)], axis=1)


def _watched(pieces: Iterable[pd.DataFrame], total: int) -> Iterator[pd.DataFrame]:
    """Show progress on standard error where a person watches a long table."""
    columns = TextColumn("answering"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    hidden = total <= CHUNK or not is_terminal(sys.stderr)
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("", total=total)
        for piece in pieces:
            yield piece
            bar.advance(task, len(piece))


def _job_option(field: str) -> Any:
    """The option for a field of a job."""
    default = OPTIONAL.get(field) or ("the newest" if field == "model_version" else None)
    panel = "How it trains" if field in ("stack", *SETTINGS) else "One job" if field != "model_version" else None
    return typer.Option(
        f"--{field.replace('_', '-')}",
        help=escape(f"{Workload.model_fields[field].description}{f' (default: {default})' if default else ''}."),
        metavar="INTEGER" if field in NUMBERS else "TEXT",
        show_default=False,
        rich_help_panel=panel,
    )


@with_options(_job_option, ["model_version", *(field for field in Workload.model_fields if field != "model_version")])
def recommend_command(
    context: typer.Context,
    csv_file: Annotated[
        str | None,
        typer.Option(
            "--csv", metavar="FILE", show_default=False, help="Jobs, one a line, below the column names; - is stdin."
        ),
    ] = None,
    output_file: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", show_default=False, help="Where answers go; by default stdout."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON instead of CSV or a table.")] = False,
    job_files: Annotated[
        list[str] | None,
        typer.Option(
            "--job",
            metavar="FILE",
            show_default=False,
            help="One job as it stands: a PyTorchJob or TrainJob, a command line, arguments of TRL or the Trainer, "
            "accelerate's or axolotl's config; several are read together, and options win.",
        ),
    ] = None,
    patch: Annotated[
        bool,
        typer.Option(
            "--patch", help="With --job: write the manifest or accelerate config, with the GPU counts changed."
        ),
    ] = False,
) -> None:
    """Recommend the smallest number of GPUs, for a table of jobs or for one.

    A table's columns are named as the options of one job, with _ for -. Optional ones may be absent, and cells empty.
    All columns are kept; can_recommend (0 or 1), gpus (per worker), workers and reason are appended.
    Where the table has answers already (a column can_recommend), new ones replace them.
    If any line is bad, no answer is written.

    One job is printed as a table to a terminal, as CSV elsewhere.
    With --patch and no recommendation, nothing is written and the exit code is 3.

    $ ado-autoconf recommend --csv jobs.csv --output answers.csv

    $ ado-autoconf recommend --model-name llama-7b --method lora --gpu-model L40S --tokens-per-sample 512 --batch-size 8

    $ ado-autoconf recommend --job examples/pytorchjob.yaml --patch
    """
    job = {field: context.params[field] for field in Workload.model_fields if not is_empty(context.params[field])}
    with exit_codes():
        if csv_file is None:
            if patch and not job_files:
                raise BadInput("--patch: needs --job")
            fields = job_from_files(job_files, job) if job_files else job
            if patch:
                _, answer = _answer_one(fields)
                raise typer.Exit(write_patched(job_files or [], answer, output_file))
            _recommend_one(fields, output_file, as_json)
        elif job_files or patch:
            raise BadInput("--csv and --job or --patch exclude each other")
        else:
            version = job.pop("model_version", None)
            if job:
                options = ", ".join(f"--{field.replace('_', '-')}" for field in job)
                raise BadInput(f"{options}: for one job only; with --csv these are columns of the file")
            _recommend_table(csv_file, version, output_file, as_json)


def _answer_one(fields: dict[str, Any]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """One job with its answer: as a table of one row, and as it is shown."""
    try:
        job = Workload.parse(**{"model_version": versions.DEFAULT, **fields})
    except ValueError as error:
        hint = "" if fields else "; give --csv FILE, or one job by options (see --help)"
        raise BadInput(f"{error}{hint}") from None
    table = pd.DataFrame({field: [value] for field, value in job.model_dump(exclude_none=True).items()}, dtype=object)
    answer = pd.concat([table, recommend(table)], axis=1)
    return answer, {**next(json_rows(answer)), "training_stack": job.stack_name()}


def _recommend_one(fields: dict[str, Any], output_file: str | None, as_json: bool) -> None:
    answer, shown = _answer_one(fields)
    if output_file is None and not as_json and is_terminal(sys.stdout):
        show_answer(shown)
        return
    with output(output_file) as stream:
        if as_json:
            stream.write(f"{json.dumps(shown, indent=2, ensure_ascii=False)}\n".encode())
        else:
            write_csv([answer], stream)


def _recommend_table(csv_file: str, model_version: str | None, output_file: str | None, as_json: bool) -> None:
    model_version = version_named(model_version)
    table = read_table(csv_file)
    check_jobs(table, called(csv_file))
    earlier = earlier_answers(table)
    if earlier:
        note(f"{called(csv_file)}: earlier answers, replaced by new ones: {', '.join(earlier)}")
        table = table.drop(columns=earlier)
    ignored = [column or "(without a name)" for column in table if column not in Workload.model_fields]
    if ignored:
        note(f"{called(csv_file)}: columns carried through, but ignored: {', '.join(ignored)}")
    for sentence in doubts(table):
        note(f"{called(csv_file)}: {sentence}")
    with output(output_file) as stream:
        pieces = answered(table, model_version)
        first = next(pieces)  # a broken version shows here, before anything is written
        write = write_json if as_json else write_csv
        write(_watched(chain([first], pieces), len(table)), stream)
