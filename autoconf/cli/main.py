"""The command ``ado-autoconf``: tables of jobs and single ones, the released versions, a picture of the answers.

Exit codes: 0 answered ("no recommendation" is an answer), 2 bad input, 1 broken environment, 3 nothing to patch for
want of a recommendation (``recommend --patch``), 128 + n ended by signal n.
Standard output carries data only; everything said about it goes to standard error.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from contextlib import suppress
from typing import Annotated, Any

import typer

from autoconf.cli.console import is_terminal
from autoconf.cli.plot import plot_command
from autoconf.cli.queries import (
    avoid_oom_command,
    estimate_command,
    gpu_model_command,
    largest_batch_command,
    largest_sample_command,
)
from autoconf.cli.recommend import recommend_command
from autoconf.cli.user_versions import trace_command, train_command
from autoconf.cli.versions import stacks_command, versions_command
from autoconf.distribution import __version__
from autoconf.files import unfinished
from autoconf.jobs.job import TRAINING_STACK

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
)


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
    With recommend --patch also 3: there is no recommendation to write.
    """


app.command("recommend", epilog=f"Answers hold for {TRAINING_STACK}.")(recommend_command)
app.command("avoid-oom")(avoid_oom_command)
app.command("largest-batch")(largest_batch_command)
app.command("largest-sample")(largest_sample_command)
app.command("gpu-model")(gpu_model_command)
app.command("estimate")(estimate_command)
app.command("versions")(versions_command)
app.command("stacks")(stacks_command)
app.command("plot")(plot_command)
app.command("trace")(trace_command)
app.command("train")(train_command)


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
    for path in unfinished:
        with suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if is_terminal(sys.stderr):
        os.write(sys.stderr.fileno(), b"\x1b[?25h")  # the progress bar hides the cursor
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
