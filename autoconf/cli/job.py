"""The command ``ado-autoconf job``, which prints what is read from the files of a job."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import pandas as pd
import typer

from autoconf.cli.console import show_rows
from autoconf.cli.job_folder import job_paths
from autoconf.cli.job_options import job_options
from autoconf.cli.options import exit_codes, note
from autoconf.cli.output import output, write_csv, write_object
from autoconf.errors import BadInput
from autoconf.files import STANDARD_STREAM
from autoconf.jobs.job import Workload, read
from autoconf.jobs.queries import MIN_GPUS, NUMBER_GPUS
from autoconf.jobs.values import is_empty, whole_number
from autoconf.planner.job_files import missing_of, notes_of, provenance_of, read_fields

READING = replace(MIN_GPUS, arguments=(NUMBER_GPUS,))  # every field and argument that files have
_COLUMNS = ("value", "file", "line", "key", "rule")


@job_options(READING, "output_file", "as_json", "as_csv")
def job_command(
    context: typer.Context,
    files: Annotated[list[str], typer.Argument(metavar="FILE...", show_default=False, help="The files of one job.")],
) -> None:
    """Print what is read from the files of a job: each value with its file, line and key, and the rule that reads it.

    Nothing is recommended. A setting that an option gives is not read.
    With --json, the fields of the job and the number of GPUs that the files request are printed as well.

    $ ado-autoconf job examples/pytorchjob.yaml
    """
    given = context.params
    options = {field: given[field] for field in (*Workload.model_fields, NUMBER_GPUS) if not is_empty(given.get(field))}
    with exit_codes():
        number = _number(options.pop(NUMBER_GPUS, None))
        job = read_fields(job_paths(files), options, MIN_GPUS)
        provenance = provenance_of(job)
        counts = [] if number is not None else [count.record() for count in job.counted.sources]
        rows = [*provenance["read"], *counts]
        if missing := missing_of(job, {**job.fields, **options}, MIN_GPUS):
            note(f"not certain: {missing}")
        with output(given["output_file"]) as stream:
            if given["as_json"]:
                of_options = {field: read(field, value) for field, value in options.items()}
                fields: dict[str, Any] = {**job.fields, **of_options, NUMBER_GPUS: number or job.counted.gpus}
                write_object({**fields, **provenance, "read": rows, "ignored": list(job.ignored)}, stream)
            elif given["as_csv"] or given["output_file"] not in (None, STANDARD_STREAM):
                write_csv([pd.DataFrame(rows, columns=[*_COLUMNS], dtype=object)], stream)
            else:
                show_rows(rows)
        for line in notes_of(job._replace(read=(), ignored=())):
            note(line)


def _number(text: str | None) -> int | None:
    try:
        return None if text is None else whole_number(NUMBER_GPUS, text)
    except ValueError as error:
        raise BadInput(str(error)) from None
