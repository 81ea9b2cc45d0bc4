"""The commands ``ado-autoconf trace``, for a user model, and ``ado-autoconf train``, for a user version."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from autoconf.cli.console import is_terminal, show_own_model, show_own_version
from autoconf.cli.options import exit_codes, note
from autoconf.cli.output import output, write_object
from autoconf.errors import AutoConfError, BadInput
from autoconf.jobs.job import read
from autoconf.jobs.names import Names, words
from autoconf.predictor import registry, user_versions
from autoconf.predictor.build_extra import check_build_extra


def trace_command(
    config: Annotated[
        str,
        typer.Argument(metavar="CONFIG", show_default=False, help="A Hugging Face config.json, or a folder with one."),
    ],
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", show_default=False, help="The name of the model in jobs.")
    ],
    lora_targets: Annotated[
        str | None,
        typer.Option(
            "--lora-targets",
            metavar="MODULE,...",
            show_default=False,
            help="Linear modules with LoRA adapters; by default PEFT's default modules within attention.",
        ),
    ] = None,
    aliases: Annotated[
        list[str] | None,
        typer.Option(
            "--alias", metavar="ID", show_default=False, help="Another name of the model; may be given repeatedly."
        ),
    ] = None,
    folder: Annotated[str, typer.Option("--output", "-o", metavar="DIR", help="Folder for NAME.traces.parquet.")] = ".",
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    r"""Trace the memory of your own model under every stack, from its config alone; needs the extra \[build].

    Nothing is downloaded and no weights are read. Tracing takes a minute or two.

    The output is the memory that each further 1,000 tokens of a long micro-batch add to the peak of each of several
    GPUs and, for a few jobs of batch size 16, the smallest layout on up to 64 GPUs: workers x GPUs of each.

    $ ado-autoconf trace config.json --name my-model
    """
    with exit_codes():
        name = _name(name)
        path = Path(folder) / f"{name}.traces.parquet"
        aliases = [_alias(alias) for alias in aliases or ()]
        targets = [target.strip() for target in (lora_targets or "").split(",") if target.strip()]
        with redirect_stdout(sys.stderr), warnings.catch_warnings(action="ignore"):  # libraries print, and warn
            found = _traced(config, name, targets, aliases, path)
        found |= {"file": str(path), "next": _next(path, name)}
        with output(None) as stream:
            if as_json:
                write_object(found, stream)
            else:
                show_own_model(found)


def _traced(config: str, name: str, targets: list[str], aliases: list[str], path: Path) -> dict[str, Any]:
    """Trace a model into a file, and summarize it."""
    hf_config, trace_file, summary = _build()
    aliases = _with_published(hf_config.hub_id(config), aliases, f"{config}: _name_or_path", name)
    with output(str(path)) as stream:  # fail now, not minutes later, if the folder cannot be written to
        architecture = hf_config.own_architecture(config, name, targets, aliases)
        if hf_config.own_code(config):
            note(
                f"{config}: auto_map names custom code; the code of transformers is traced instead, which runs without "
                "trust_remote_code"
            )
        figures = hf_config.own_figures(architecture, _watched)
        trace_file.write_trace(architecture, figures, stream)
    _note_problems(config, figures.problems)
    return dict(summary.summary(path))


def _note_problems(config: str, problems: Mapping[Any, str]) -> None:
    if problems:
        first = next(iter(problems.values()))
        note(f"{config}: {len(problems)} configurations cannot be traced; the first because of {first}")


def _with_published(published: str | None, aliases: list[str], where: str, name: str) -> list[str]:
    """Add the name in a model's config to its aliases, unless the newest version has a model of that name."""
    if not published or published in aliases:
        return aliases
    if known := _known(published):
        note(f"{where} {published!r} is an alias of {known}, and does not become one of {name}")
        return aliases
    return [*aliases, published]


def _build() -> tuple[Any, Any, Any]:
    """Import the modules that trace models and read traces."""
    check_build_extra("trace")
    try:
        from autoconf.pipeline.tracing import hf_config, summary, trace_file
    except Exception as error:  # a broken library can raise any exception at import
        raise AutoConfError(
            f"a library of the extra [build] does not import: {type(error).__name__}: {error}"
        ) from None
    return hf_config, trace_file, summary


def _name(text: str) -> str:
    try:
        name = read("model_name", text)
    except ValueError as error:
        raise BadInput(f"--name: {str(error).partition(': ')[2] or error}") from None
    if any(character.isspace() or character in "/\\" or not character.isprintable() for character in name):
        raise BadInput(f"--name: must have no white space and no / or \\, got {name!r}")
    if not words(name) or name[0] in ".-":
        raise BadInput(f"--name: must have a letter from a to z or a digit, and begin with no . or -, got {name!r}")
    if known := _known(name):
        raise BadInput(f"--name: version {registry.DEFAULT} has {name!r} already, as {known}; choose another")
    return name


def _alias(text: str) -> str:
    try:
        alias = read("model_name", text)
    except ValueError as error:
        raise BadInput(f"--alias: {str(error).partition(': ')[2] or error}") from None
    if known := _known(alias):
        raise BadInput(f"--alias: in version {registry.DEFAULT} {alias!r} is {known}")
    return alias


def _known(name: str) -> str | None:
    """The model of the newest version that has a name or alias."""
    models = registry.card(registry.DEFAULT).domain.models
    return Names({known: model.aliases for known, model in models.items()}).find(name)


def _watched(ways: list[Any]) -> Iterable[Any]:
    return _shown(ways) if is_terminal(sys.stderr) else ways


def _shown(ways: list[Any]) -> Iterator[Any]:
    columns = TextColumn("tracing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield from bar.track(ways, description="")


def _next(path: Path, name: str) -> str:
    own = f"{registry.DEFAULT}+{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-') or 'mine'}"
    return (
        f"ado-autoconf train --from {registry.DEFAULT} --traces {quote(str(path))} --version {own} "
        f"--output {quote(str(path.parent))}"
    )


def train_command(
    more_traces: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TRACES...", show_default=False, help="More trace files, for example from a shell pattern."
        ),
    ] = None,
    base: Annotated[
        str, typer.Option("--from", metavar="VERSION", help="The version to start from.")
    ] = registry.DEFAULT,
    traces: Annotated[
        list[str] | None,
        typer.Option("--traces", metavar="FILE", show_default=False, help="A trace file: a model to add."),
    ] = None,
    measured: Annotated[
        str | None,
        typer.Option("--measured", metavar="FILE", show_default=False, help="CSV of runs on your cluster; - is stdin."),
    ] = None,
    version: Annotated[
        str,
        typer.Option(
            "--version", metavar="NAME", show_default=False, help="Name of the new version, such as 2.0.0+mine."
        ),
    ] = "",
    folder: Annotated[
        str,
        typer.Option("--output", "-o", metavar="DIR", envvar=user_versions.VARIABLE, help="Folder of your versions."),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Make your own version, with more models, and with a safety margin and a speed learned from runs on your cluster.

    A table of runs has the columns of a job, number_gpus, and at least one of failed or is_valid, peak_allocated_gib,
    gpu_memory_utilization_peak (percent) and tokens_per_second (of all GPUs). An export of ado can be used without
    changes.
    The safety margin is learned from outcomes and memory, factors on the throughput from tokens per second. If either
    predicts held-out runs no better, the new version answers as the version that it starts from.

    $ ado-autoconf train --from 2.0.0 --traces my-model.traces.parquet --version 2.0.0+mine --output models
    """
    with exit_codes():
        for option, given in (("--version", version), ("--output", folder)):
            if not given.strip():
                raise BadInput(f"{option}: is required")
        files = [*(traces or ()), *(more_traces or ())]
        with redirect_stdout(sys.stderr), warnings.catch_warnings(action="ignore"):  # libraries print, and warn
            from autoconf.pipeline.release.user_version import (
                train_own,
            )  # the pipeline is imported only to make a version

            made = train_own(base, version, Path(folder), files, measured)
        for sentence in made.notes:
            note(sentence)
        with output(None) as stream:
            if as_json:
                write_object(made.summary(), stream)
            else:
                show_own_version(made.summary())
