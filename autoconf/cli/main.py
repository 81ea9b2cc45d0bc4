"""The command ``ado-autoconf``: its subcommands, and the process that runs them.

Standard output carries data only; notes, progress and errors go to standard error.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated, Any

import typer

from autoconf.cli.check import check_command
from autoconf.cli.command import Command, plain
from autoconf.cli.console import is_terminal
from autoconf.cli.job import READING, job_command
from autoconf.cli.job_options import OTHER_NAMES, query_command
from autoconf.cli.plot import plot_command
from autoconf.cli.queries import (
    avoid_oom_command,
    estimate_command,
    gpu_model_command,
    largest_batch_command,
    largest_sample_command,
    plan_command,
    throughput_command,
)
from autoconf.cli.recommend import recommend_command
from autoconf.cli.serve import mcp_command, serve_command
from autoconf.cli.user_versions import trace_command, train_command
from autoconf.cli.versions import stacks_command, versions_command
from autoconf.distribution import __version__
from autoconf.files import remove_unfinished
from autoconf.jobs.job import TRAINING_STACK
from autoconf.jobs.queries import (
    AVOID_OOM,
    ESTIMATE,
    GPU_MODEL,
    LARGEST_BATCH,
    LARGEST_SAMPLE,
    MIN_GPUS,
    PLAN,
    THROUGHPUT,
)

_EXIT_CODES = (
    'Exit codes: 0 answered ("no recommendation" is an answer), 1 broken environment, 2 bad input, 3 no recommendation '
    "to patch a manifest with (recommend --patch), 4 the answer is no (check, --fail-on-no), 128 + n ended by signal n."
)

_QUERY_EPILOG = f"{OTHER_NAMES}\n\nAnswers hold for {TRAINING_STACK}."

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": plain},
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
    epilog=_EXIT_CODES,
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
    """Find the smallest number of GPUs for an LLM fine-tuning job, before it runs.

    $ ado-autoconf recommend --model Qwen/Qwen2.5-7B-Instruct --method lora --gpu H100 --seq-len 4096 --batch 8

    $ ado-autoconf recommend --csv jobs.csv --output answers.csv

    $ ado-autoconf estimate --model llama-7b --method full --gpu H200 --seq-len 4096 --batch 8 --gpus 2
    """


_ASK, _FILES = "Queries about jobs", "Job files"
_ABOUT, _EXTEND = "Versions, stacks and plots", "Your own models and clusters"
_SERVE = "For other programs"
for name, query, command in (
    ("recommend", MIN_GPUS, recommend_command),
    ("avoid-oom", AVOID_OOM, avoid_oom_command),
    ("largest-batch", LARGEST_BATCH, largest_batch_command),
    ("largest-sample", LARGEST_SAMPLE, largest_sample_command),
    ("gpu-model", GPU_MODEL, gpu_model_command),
    ("estimate", ESTIMATE, estimate_command),
    ("throughput", THROUGHPUT, throughput_command),
    ("plan", PLAN, plan_command),
):
    app.command(name, cls=query_command(query), epilog=_QUERY_EPILOG, rich_help_panel=_ASK)(command)
for name, query, command in (("check", ESTIMATE, check_command), ("job", READING, job_command)):
    app.command(name, cls=query_command(query), epilog=OTHER_NAMES, rich_help_panel=_FILES)(command)
app.command("versions", cls=Command, rich_help_panel=_ABOUT)(versions_command)
app.command("stacks", cls=Command, rich_help_panel=_ABOUT)(stacks_command)
app.command("plot", cls=Command, rich_help_panel=_ABOUT)(plot_command)
app.command("trace", cls=Command, rich_help_panel=_EXTEND)(trace_command)
app.command("train", cls=Command, rich_help_panel=_EXTEND)(train_command)
app.command("serve", cls=Command, rich_help_panel=_SERVE)(serve_command)
app.command("mcp", cls=Command, rich_help_panel=_SERVE)(mcp_command)


# --- the process ------------------------------------------------------------------------------------------------------


def run() -> None:
    """Run the command as a process; no signal except SIGKILL leaves a partly written file."""
    for ending in ("SIGINT", "SIGTERM", "SIGHUP", "SIGPIPE"):  # Windows lacks some of them
        number = getattr(signal, ending, None)
        # Python itself ignores SIGPIPE; the others are ignored only if the caller, such as nohup, wants this.
        if number is not None and (ending == "SIGPIPE" or signal.getsignal(number) != signal.SIG_IGN):
            signal.signal(number, _end)
    try:
        app()
    except OSError as error:  # raised by typer's own output, such as help on a full disk
        typer.secho(f"ado-autoconf: {error}", err=True, fg="red")
        # The rest of the buffer cannot be written either; at the end Python would try, and exit with 120.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)


def _end(number: int, _: Any) -> None:
    """Clean up and end by the signal as if it were not handled; a library could catch an exception raised here."""
    remove_unfinished()
    if is_terminal(sys.stderr):
        os.write(sys.stderr.fileno(), b"\x1b[?25h")  # the progress bar hides the cursor
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
