"""The command ``ado-autoconf recommend``: the smallest number of GPUs for a table of jobs or for one job."""

from __future__ import annotations

from typing import Annotated, NoReturn

import typer

from autoconf.cli.ask import CommandQuery, OutputOptions, answered_one
from autoconf.cli.command_job import answer, job_of
from autoconf.cli.job_options import query_options
from autoconf.cli.options import ExitCode, exit_codes, notes_held
from autoconf.cli.patched_job import write_patched
from autoconf.errors import BadInput
from autoconf.jobs.queries import MIN_GPUS
from autoconf.planner.min_gpus import recommend

RECOMMEND = CommandQuery(MIN_GPUS, recommend)


@query_options(MIN_GPUS)
def recommend_command(
    context: typer.Context,
    patch: Annotated[
        bool,
        typer.Option(
            "--patch",
            help="With --job: write the manifest, accelerate config or Slurm script, with the GPU counts changed.",
        ),
    ] = False,
) -> None:
    """Recommend the smallest number of GPUs for a table of jobs or for one job.

    $ ado-autoconf recommend --model llama-7b --method lora --gpu L40S --seq-len 512 --per-device-batch-size 8

    $ ado-autoconf recommend --csv jobs.csv --output answers.csv

    The columns of a table have the names of the options of one job, with _ for -. Optional columns may be absent, and
    optional cells empty.
    All columns are kept; can_recommend (0 or 1), gpus (per worker), workers and reason are appended.
    If the table already has answers (a column can_recommend), they are replaced.
    If any line is invalid, nothing is written.

    The answer about one job is printed as text, or as data with --json or --csv; a file is written as CSV.

    --explain also shows the memory on that number of GPUs and on the next smaller one, and the single changes of the
    job that would lead to fewer GPUs or to a recommendation.

    $ ado-autoconf recommend --job examples/pytorchjob.yaml --patch
    """
    if not patch or context.params["csv_file"] is not None:
        answer(RECOMMEND, context)
        return
    with exit_codes():
        if not context.params["job_files"]:
            raise BadInput("--patch: needs --job")
        if context.params["explained"]:
            raise BadInput("--explain and --patch exclude each other")
        _patch(context, OutputOptions.of(context))


def _patch(context: typer.Context, to: OutputOptions) -> NoReturn:
    """Write the manifest with the GPU counts of the answer; the first note describes the change."""
    with notes_held():
        fields = job_of(RECOMMEND, context).fields
        _, _, (shown,) = answered_one(RECOMMEND, fields)
        code = write_patched(context.params["job_files"], fields, shown, to.file)
    to.end(code == ExitCode.NOTHING_TO_PATCH)
    raise typer.Exit(code)
