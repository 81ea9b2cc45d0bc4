"""The options of the commands for queries: fields of a job, input tables and output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.markup import escape

from autoconf.cli.command import AS_CSV, Command, advising
from autoconf.cli.options import ExitCode, with_options
from autoconf.cli.spellings import advice, names
from autoconf.jobs.job import BATCHES, DROPOUT, IN_GIB, NAMES, NUMBERS, Workload, choices
from autoconf.jobs.presets import SETTINGS
from autoconf.jobs.queries import ALL_ARGUMENTS, Query
from autoconf.planner.known_names import aliases_of
from autoconf.predictor import registry

OTHER_NAMES = (
    "Options also have the names that trainers use, such as --model (-m), --gpu (-g), --seq-len, --batch (-b), "
    "--gas, --dtype, --optimizer and --lora-rank (-r), and may be written with _ for -."
)
# The options of every command besides the fields of a job, by the name of the parameter.
_OF_EVERY_QUERY: dict[str, Any] = {
    "job_files": Annotated[
        list[str] | None,
        typer.Option(
            "--job",
            metavar="FILE",
            show_default=False,
            help="Read one job from a Kubernetes manifest, a script for a shell, Slurm or LSF, a Python script, "
            "arguments of TRL or the Trainer, or a config of accelerate, axolotl or LLaMA-Factory; a folder is "
            "searched for these; several files form one job; options override them.",
        ),
    ],
    "model_config": Annotated[
        str | None,
        typer.Option(
            "--model-config",
            metavar="FILE",
            show_default=False,
            help="Instead of --model-name: a Hugging Face config.json, or a folder with one. A model that no version "
            "has is traced at the first time, in a minute or two, which needs the extra \\[build].",
        ),
    ],
    "saved_job": Annotated[
        str | None,
        typer.Option(
            "--save-job",
            metavar="FILE",
            show_default=False,
            help="Also write the job to a new YAML file for ado's run_experiment.",
        ),
    ],
    "explained": Annotated[
        bool,
        typer.Option(
            "--explain",
            help="For one job: show the memory by part and the changes that would help, as text, or as a picture with "
            "--output.",
        ),
    ],
    "csv_file": Annotated[
        str | None,
        typer.Option(
            "--csv",
            metavar="[FILE]",
            show_default=False,
            help="Jobs, one a line, below the column names; - is stdin. Without a file: write the answer as CSV.",
        ),
    ],
    "as_csv": Annotated[bool, typer.Option(AS_CSV, hidden=True)],
    "output_file": Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="FILE", show_default=False, help="File for the answers; by default stdout."
        ),
    ],
    "as_json": Annotated[bool, typer.Option("--json", help="Write JSON.")],
    "fail_on_no": Annotated[
        bool,
        typer.Option(
            "--fail-on-no", help=f"Exit with {ExitCode.ANSWERED_NO} if the answer, or any answer of a table, is no."
        ),
    ],
}


def job_fields(query: Query) -> list[str]:
    """The fields and arguments of one job, in the order of their options.

    The version comes first, because it is an option for tables as well; the batch on each GPU comes before the batch
    over all GPUs.
    """
    first = ("model_version", "model_name", "method", "gpu_model", "tokens_per_sample", *reversed(BATCHES))
    return sorted(query.fields, key=lambda field: first.index(field) if field in first else len(first))


def query_options(query: Query) -> Callable[[Callable[..., None]], Any]:
    """Give a command the options of a query: input, output, and the fields of one job."""
    return with_options({**_OF_EVERY_QUERY, **{field: _field_option(query, field) for field in job_fields(query)}})


def job_options(query: Query, *shared: str) -> Callable[[Callable[..., None]], Any]:
    """Give a command the options of one job.

    Args:
        query: The query whose fields the job has.
        shared: The names of parameters that the commands of all queries have.
    """
    fields = {field: _field_option(query, field) for field in job_fields(query)}
    return with_options({**{name: _OF_EVERY_QUERY[name] for name in shared}, **fields})


def query_command(query: Query) -> type[Command]:
    """The class of a query's command."""
    return advising(advice(query))


def _field_option(query: Query, field: str) -> Any:
    default = query.optional.get(field) or ("the newest" if field == "model_version" else None)
    panel = "Training stack" if field in ("stack", *SETTINGS) else "One job" if field != "model_version" else None
    option = typer.Option(
        *names(field),
        help=escape(f"{_description(field)}{f' (default: {default})' if default else ''}."),
        metavar=_metavar(field),
        show_default=False,
        rich_help_panel=panel,
        autocompletion=_completion(field),
    )
    return Annotated[str | None, option]


def _metavar(field: str) -> str:
    """The kind of value that the help shows for a field."""
    if field in (*IN_GIB, DROPOUT):
        return "NUMBER"
    return "CHOICE" if _choices(field) else "INTEGER" if field in (*NUMBERS, *ALL_ARGUMENTS) else "TEXT"


def _description(field: str) -> str:
    """The description of a field, with all of its choices."""
    description = str(ALL_ARGUMENTS.get(field) or Workload.model_fields[field].description)
    listed = all(choice in description for choice in _choices(field))
    return description if listed else f"{description}: {', '.join(_choices(field))}"


def _choices(field: str) -> tuple[str, ...]:
    """The values of a field that has a fixed set of values."""
    if field == "method":
        return ("full", "lora", "qlora")
    return () if field in (*NAMES, *NUMBERS, *ALL_ARGUMENTS) else choices(field)


def _completion(field: str) -> Callable[[str], list[str]]:
    """The completion function of a field for shells."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in _values(field) if value.startswith(incomplete)]

    return complete


def _values(field: str) -> list[str]:
    """The values that can be listed: choices, and the names of the newest version."""
    if field == "model_version":
        return registry.known()
    if field not in ("model_name", "gpu_model"):
        return [*_choices(field)]
    domain = registry.card(registry.DEFAULT).domain
    named = aliases_of(domain) if field == "model_name" else {name: gpu.aliases for name, gpu in domain.gpus.items()}
    return [name for own, more in named.items() for name in (own, *more)]
