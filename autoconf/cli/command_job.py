"""Run the command of a query: for the job of its options and files, or for a table."""

from __future__ import annotations

import typer

from autoconf.cli.ask import CommandQuery, OutputOptions, answer_one, answer_table
from autoconf.cli.explained import explain_one
from autoconf.cli.job_file import job_from_files
from autoconf.cli.job_folder import job_paths
from autoconf.cli.options import exit_codes
from autoconf.cli.save_job import save_job
from autoconf.cli.spellings import own_name
from autoconf.errors import BadInput
from autoconf.jobs.model_config import config_file, without_config
from autoconf.jobs.values import is_empty
from autoconf.planner.job_files import FromFiles


def given_fields(command: CommandQuery, context: typer.Context) -> dict[str, str]:
    """The fields and arguments of one job that options give."""
    fields = command.query.fields
    given = {field: context.params[field] for field in fields if not is_empty(context.params[field])}
    if (config := context.params["model_config"]) is not None:
        if "model_name" in given:
            raise BadInput("--model-config and --model-name exclude each other")
        if config_file(config) is None:
            problem = without_config(config) or f"{config} is not a folder, and its name does not end in .json"
            raise BadInput(f"--model-config: {problem}")
        given["model_name"] = config
    return given


def job_of(command: CommandQuery, context: typer.Context) -> FromFiles:
    """The one job of a command, from its files and options; it is saved if an option says so.

    Raises:
        BadInput: A file cannot be read, or a required field is missing.
    """
    files, saved = context.params["job_files"], context.params["saved_job"]
    job = FromFiles(given_fields(command, context), {}, ())
    if files:
        job = job_from_files(job_paths(files), job.fields, command.query)
    if saved is not None:
        save_job(saved, command.query, job.fields, job.gpus)
    return job


def answer(command: CommandQuery, context: typer.Context) -> None:
    """Run the command of a query for one job or for a table."""
    csv_file, to = context.params["csv_file"], OutputOptions.of(context)
    with exit_codes():
        if csv_file is not None:
            _check_table_options(context)
            fields = given_fields(command, context)
            version = fields.pop("model_version", None)
            if fields:
                options = ", ".join(map(own_name, fields))
                raise BadInput(f"{options}: for one job only; with --csv these are columns of the file")
            answer_table(command, csv_file, version, to)
            return
        job = job_of(command, context)
        if context.params["explained"]:
            explain_one(command, job.fields, to, job.provenance)
        else:
            answer_one(command, job.fields, to, job.provenance)


def _check_table_options(context: typer.Context) -> None:
    given = context.params
    if given["explained"]:
        raise BadInput("--explain: for one job only")
    if given["job_files"] or given.get("patch"):
        raise BadInput("--csv and --job or --patch exclude each other")
    if given["saved_job"] is not None:
        raise BadInput("--save-job: for one job only")
