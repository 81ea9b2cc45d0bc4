"""The command ``ado-autoconf recommend``: the smallest number of GPUs for a table of jobs or for one job."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, NoReturn

import typer

from autoconf.cli.ask import CommandQuery, OutputOptions, answered_one
from autoconf.cli.command_job import answer, job_of
from autoconf.cli.job_folder import job_paths
from autoconf.cli.job_options import query_options
from autoconf.cli.options import ExitCode, exit_codes, notes_held
from autoconf.cli.patched_job import write_patched
from autoconf.errors import BadInput
from autoconf.jobs.queries import MIN_GPUS
from autoconf.planner.job_files import FromFiles, fewest_nodes
from autoconf.planner.min_gpus import recommend
from autoconf.planner.results import Recommendation

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
    nodes_only: Annotated[
        bool,
        typer.Option(
            "--nodes-only",
            help="With --patch: change only the number of nodes, at the GPUs per node of the manifest; exit with 3 if "
            "another count would have to change.",
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
    if nodes_only and not patch:
        with exit_codes():
            raise BadInput("--nodes-only: needs --patch")
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
        job, nodes_only = job_of(RECOMMEND, context), context.params["nodes_only"]
        if nodes_only:
            answer = asdict(_on_whole_nodes(job))
        else:
            _, _, (answer,) = answered_one(RECOMMEND, job.fields)
        code = write_patched(job_paths(context.params["job_files"], quiet=True), job, answer, to.file, nodes_only)
    to.end(code == ExitCode.NOTHING_TO_PATCH)
    raise typer.Exit(code)


def _on_whole_nodes(job: FromFiles) -> Recommendation:
    if job.counted.per_worker is None:
        raise BadInput(f"--nodes-only: the GPUs per node are not certain: {job.counted.problem}")
    return fewest_nodes(job.fields, job.counted.per_worker)
