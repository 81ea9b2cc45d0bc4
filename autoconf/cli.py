"""The command ``ado-autoconf``: tables of jobs and single ones, the released versions, a picture of the answers.

Exit codes: 0 answered ("no recommendation" is an answer), 2 bad input, 1 broken environment, 128 + n ended by signal n.
Standard output carries data only; everything said about it goes to standard error.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial, wraps
from inspect import Parameter, signature
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from autoconf import __version__, charts, plot, predictors
from autoconf.columns import doubts
from autoconf.commands.own import trace_command
from autoconf.errors import AutoConfError, BadInput
from autoconf.presets import SETTINGS, presets
from autoconf.recommender import recommend
from autoconf.show import is_terminal, show_answer, show_models, show_stack, show_summary, show_version
from autoconf.tables import (
    STANDARD_STREAM,
    called,
    check_jobs,
    earlier_answers,
    json_rows,
    output,
    read_table,
    unfinished,
    write_csv,
    write_json,
)
from autoconf.workload import NUMBERS, OPTIONAL, TRAINING_STACK, Workload, is_empty, read

# Jobs answered between two updates of the progress bar; also what is in memory besides the table itself.
CHUNK = 10_000


@contextmanager
def _exit_codes() -> Iterator[None]:
    """Turn what can go wrong into a message on standard error and an exit code."""
    try:
        yield
    except (BadInput, AutoConfError) as error:
        typer.secho(str(error), err=True, fg="red")
        raise typer.Exit(2 if isinstance(error, BadInput) else 1) from None


def _note(message: str) -> None:
    typer.secho(message, err=True, fg="yellow")


# --- answering --------------------------------------------------------------------------------------------------------


def answered(table: pd.DataFrame, model_version: str | None) -> Iterator[pd.DataFrame]:
    """Answer a checked table piece by piece: its columns, with the answers' columns appended.

    Raises:
        AutoConfError: a version that the table asks for is broken; before the first piece.
    """
    wanted = table["model_version"].unique() if "model_version" in table else [""] * min(len(table), 1)
    wanted = {read("model_version", text) or model_version or predictors.DEFAULT for text in wanted}
    for version in wanted.intersection(predictors.RELEASED):
        predictors.load(version)
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


# --- commands ---------------------------------------------------------------------------------------------------------

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
)


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


def _with_options(option: Callable[[str], Any], names: Iterable[str]) -> Callable[[Callable[..., None]], Any]:
    """Give a command an option for each of some names, whose value it finds in its context."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = signature(command, eval_str=True)
        more = [
            Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option(name)])
            for name in names
        ]

        @wraps(command)
        def with_options(**values: Any) -> None:
            command(**{name: values[name] for name in own.parameters})

        with_options.__signature__ = own.replace(parameters=[*own.parameters.values(), *more])  # type: ignore[attr-defined]
        return with_options

    return decorate


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ado-autoconf {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """The smallest number of GPUs for a fine-tuning job, answered before it runs.

    Exit codes: 0 answered ("no recommendation" is an answer), 2 bad input, 1 broken environment, 128 + n by signal n.
    """


@app.command("recommend", epilog=f"Answers hold for {TRAINING_STACK}.")
@_with_options(_job_option, ["model_version", *(field for field in Workload.model_fields if field != "model_version")])
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
) -> None:
    """Recommend the smallest number of GPUs, for a table of jobs or for one.

    A table's columns are named as the options of one job, with _ for -. Optional ones may be absent, and cells empty.
    All columns are kept; can_recommend (0 or 1), gpus (per worker), workers and reason are appended.
    Where the table has answers already (a column can_recommend), new ones replace them.
    If any line is bad, no answer is written.

    One job is printed as a table to a terminal, as CSV elsewhere.

    $ ado-autoconf recommend --csv jobs.csv --output answers.csv

    $ ado-autoconf recommend --model-name llama-7b --method lora --gpu-model L40S --tokens-per-sample 512 --batch-size 8
    """
    job = {field: context.params[field] for field in Workload.model_fields if not is_empty(context.params[field])}
    with _exit_codes():
        if csv_file is None:
            _recommend_one(job, output_file, as_json)
        else:
            version = job.pop("model_version", None)
            if job:
                options = ", ".join(f"--{field.replace('_', '-')}" for field in job)
                raise BadInput(f"{options}: for one job only; with --csv these are columns of the file")
            _recommend_table(csv_file, version, output_file, as_json)


def _recommend_one(fields: dict[str, str], output_file: str | None, as_json: bool) -> None:
    try:
        job = Workload.parse(**{"model_version": predictors.DEFAULT, **fields})
    except ValueError as error:
        hint = "" if fields else "; give --csv FILE, or one job by options (see --help)"
        raise BadInput(f"{error}{hint}") from None
    table = pd.DataFrame({field: [value] for field, value in job.model_dump(exclude_none=True).items()}, dtype=object)
    answer = pd.concat([table, recommend(table)], axis=1)
    shown = {**next(json_rows(answer)), "training_stack": job.stack_name()}
    if output_file is None and not as_json and is_terminal(sys.stdout):
        show_answer(shown)
        return
    with output(output_file) as stream:
        if as_json:
            stream.write(f"{json.dumps(shown, indent=2, ensure_ascii=False)}\n".encode())
        else:
            write_csv([answer], stream)


def _recommend_table(csv_file: str, model_version: str | None, output_file: str | None, as_json: bool) -> None:
    model_version = _version(model_version)
    table = read_table(csv_file)
    check_jobs(table, called(csv_file))
    earlier = earlier_answers(table)
    if earlier:
        _note(f"{called(csv_file)}: earlier answers, replaced by new ones: {', '.join(earlier)}")
        table = table.drop(columns=earlier)
    ignored = [column or "(without a name)" for column in table if column not in Workload.model_fields]
    if ignored:
        _note(f"{called(csv_file)}: columns carried through, but ignored: {', '.join(ignored)}")
    for sentence in doubts(table):
        _note(f"{called(csv_file)}: {sentence}")
    with output(output_file) as stream:
        pieces = answered(table, model_version)
        first = next(pieces)  # a broken version shows here, before anything is written
        write = write_json if as_json else write_csv
        write(_watched(chain([first], pieces), len(table)), stream)


def _version(text: str | None) -> str | None:
    """The version that the command line names, if it does."""
    try:
        return read("model_version", text)
    except ValueError as error:
        raise BadInput(str(error)) from None


@app.command("versions")
def versions_command(
    version: Annotated[
        str | None, typer.Argument(metavar="VERSION", show_default=False, help="All about one version.")
    ] = None,
    models: Annotated[bool, typer.Option("--models", help="List the models and their other names.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """List the released versions: the models, methods, GPUs and limits that each answers for, and how good it is.

    $ ado-autoconf versions

    $ ado-autoconf versions 1.1.0

    $ ado-autoconf versions 1.1.0 --models
    """
    released, default = predictors.RELEASED, predictors.DEFAULT
    with _exit_codes():
        version = _version(version)
        if version not in (None, *released):
            raise BadInput(f"VERSION: {version!r} is not released; released versions are {', '.join(released)}")
        cards = [predictors.card(one) for one in released if version in (None, one)]
        show = show_models if models else show_version if version else show_summary
        with output(None) as stream:
            if as_json:
                shown = {"version", "created", "domain", "evaluation"}
                versions = [{"default": card.version == default, **card.model_dump(include=shown)} for card in cards]
                stream.write(f"{json.dumps(versions, indent=2, ensure_ascii=False)}\n".encode())
            else:
                for card in cards:
                    show(card, default=card.version == default)


@app.command("stacks")
def stacks_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """List the stacks that a job can name: the settings that each comes with, and where these stand.

    $ ado-autoconf stacks
    """
    with _exit_codes(), output(None) as stream:
        if as_json:
            stacks = {name: preset.model_dump() for name, preset in presets().items()}
            stream.write(f"{json.dumps(stacks, indent=2, ensure_ascii=False)}\n".encode())
        else:
            for name, preset in presets().items():
                show_stack(name, preset)


def _setting_option(setting: str) -> Any:
    return typer.Option(
        charts.option(setting),
        help=f"Draw the answers with this {setting}.",
        metavar="VALUE",
        show_default=False,
        rich_help_panel="Which answers",
    )


@app.command("plot")
@_with_options(_setting_option, charts.SETTINGS)
def plot_command(
    context: typer.Context,
    answers: Annotated[
        str,
        typer.Argument(
            metavar="ANSWERS", show_default=False, help="Answers of recommend, or ado's CSV export; - is stdin."
        ),
    ],
    picture: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", show_default=False, help="The picture: .png, .svg or .pdf.")
    ],
    panels: Annotated[
        str,
        typer.Option(
            "--panels", metavar="FIELD,...", help="What panels differ in: the last one within a group of them."
        ),
    ] = ",".join(charts.PANELS),
) -> None:
    """Draw the minimum number of GPUs over tokens and batch, one panel for each model and method.

    With --panels, one for each stack, optimizer or whatever else the answers differ in.
    A picture is of one GPU type, version and so on.
    Where the file has several, the first one is drawn, unless an option below names another.

    $ ado-autoconf plot answers.csv -o picture.png --gpu-model L40S

    $ ado-autoconf plot answers.csv -o picture.png --panels model_name,stack

    $ ado show measurements space --use-latest -o csv --output-file measurements.csv

    $ ado-autoconf plot measurements.csv -o picture.png
    """
    wanted = {setting: context.params[setting] for setting in charts.SETTINGS if not is_empty(context.params[setting])}
    with _exit_codes():
        kind = "png" if picture == STANDARD_STREAM else Path(picture).suffix.removeprefix(".").lower()
        if kind not in ("png", "svg", "pdf"):
            raise BadInput(f"{picture}: a picture's name must end in .png, .svg or .pdf")
        try:
            panels_of = charts.panels_of(panels)
        except ValueError as error:
            raise BadInput(str(error)) from None
        table = read_table(answers)
        locate: Callable[..., Any] = partial(_located, called(answers))
        chosen, notes = locate(charts.choose, locate(charts.points, table), wanted, panels_of)
        chart = locate(charts.chart, chosen, panels_of)
        for note in notes:
            _note(f"{called(answers)}: {note}")
        figure = plot.draw(chart)
        with output(picture) as stream:
            figure.savefig(stream, format=kind)


def _located(source: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of ``charts``, whose messages start with the line, and put the file before it."""
    try:
        return function(*arguments)
    except ValueError as error:
        separator = ", " if str(error).startswith("line ") else ": "
        raise BadInput(f"{source}{separator}{error}") from None


app.command("trace")(trace_command)


# --- the process ------------------------------------------------------------------------------------------------------


def run() -> None:
    """The command as a process of its own: it leaves nothing half written, whatever signal ends it but SIGKILL."""
    for ending in ("SIGINT", "SIGTERM", "SIGHUP", "SIGPIPE"):  # Windows does not have them all
        number = getattr(signal, ending, None)
        # Python itself ignores SIGPIPE; the others only somebody who wants us to, such as nohup.
        if number is not None and (ending == "SIGPIPE" or signal.getsignal(number) != signal.SIG_IGN):
            signal.signal(number, _end)
    try:
        app()
    except OSError as error:  # of what typer writes itself, such as help onto a full disk
        typer.secho(f"ado-autoconf: {error}", err=True, fg="red")
        sys.exit(1)


def _end(number: int, _: Any) -> None:
    """End by a signal as if it had not been caught; an exception can get lost in whatever library it is raised in."""
    for file in unfinished:
        with suppress(OSError):
            file.unlink()
    if is_terminal(sys.stderr):
        os.write(sys.stderr.fileno(), b"\x1b[?25h")  # the progress bar hides the cursor
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
