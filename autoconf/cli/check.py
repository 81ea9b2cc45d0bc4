"""The command ``ado-autoconf check``, which tests in one line whether a job fits on the GPUs that its files request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from autoconf.cli.ask import CommandQuery, answered_one
from autoconf.cli.job_folder import job_paths
from autoconf.cli.job_options import job_options
from autoconf.cli.options import ExitCode, exit_codes
from autoconf.cli.output import output
from autoconf.errors import BadInput
from autoconf.jobs.queries import ESTIMATE, NUMBER_GPUS
from autoconf.jobs.values import is_empty
from autoconf.planner.estimate import estimate
from autoconf.planner.job_files import complete_job

_ESTIMATE = CommandQuery(ESTIMATE, estimate)


@job_options(ESTIMATE, "job_files")
def check_command(
    context: typer.Context,
    files: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE]...", show_default=False, help="Files, each of one job.")
    ] = None,
) -> None:
    """Check whether a job fits on the GPUs that its files request: one line, and an exit code.

    The exit code is 0 if the job fits, 4 if it does not, and 2 if that is not certain, for instance because a file
    cannot be read.
    Files given without --job are separate jobs, as pre-commit passes them; the exit code is then that of the worst.

    $ ado-autoconf check --job examples/pytorchjob.yaml
    """
    options = {field: context.params[field] for field in ESTIMATE.fields if not is_empty(context.params[field])}
    jobs = [[file] for file in files or ()]
    with exit_codes():
        if context.params["job_files"]:
            jobs.append(context.params["job_files"])
        if not jobs:
            raise BadInput("give --job FILE")
        codes = {_check(paths, options) for paths in jobs}
    raise typer.Exit(min(codes, key=(ExitCode.BAD_INPUT, ExitCode.ANSWERED_NO, ExitCode.ANSWERED).index))


def _check(paths: Sequence[str], options: Mapping[str, Any]) -> ExitCode:
    """Check one job, and write the line about it."""
    try:
        _, _, (answer,) = answered_one(_ESTIMATE, complete_job(job_paths(paths, quiet=True), options, ESTIMATE).fields)
    except BadInput as error:
        typer.secho(" ".join(str(error).split("\n")), err=True, fg="red")
        return ExitCode.BAD_INPUT
    name, fits = ", ".join(paths), answer["fits"]
    if fits is None:
        typer.secho(f"{name}: {answer['reason']}", err=True, fg="red")
        return ExitCode.BAD_INPUT
    gpus = f"{answer[NUMBER_GPUS]} x {answer['gpu_model']}"
    needs = f"needs {answer['needed_memory_gib']:.1f} GiB of {answer['usable_memory_gib']:g} on each"
    with output(None) as stream:
        stream.write(f"{name}: {'fits' if fits else 'does not fit'} on {gpus}: {needs}\n".encode())
    return ExitCode.ANSWERED if fits else ExitCode.ANSWERED_NO
