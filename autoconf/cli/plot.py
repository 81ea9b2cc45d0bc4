"""The command ``ado-autoconf plot``, which draws answers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer

from autoconf.cli.options import exit_codes, note, picture_kind, with_options
from autoconf.cli.output import output
from autoconf.cli.plots import answer_grid, heatmap
from autoconf.cli.spellings import names
from autoconf.errors import BadInput
from autoconf.files import called
from autoconf.jobs.tables import read_table
from autoconf.jobs.values import is_empty


def _setting_option(setting: str) -> Any:
    option = typer.Option(
        *({answer_grid.option(setting): None} | dict.fromkeys(names(setting))),
        help=f"Draw the answers with this {setting}.",
        metavar="VALUE",
        show_default=False,
        rich_help_panel="Which answers",
    )
    return Annotated[str | None, option]


@with_options({setting: _setting_option(setting) for setting in answer_grid.SETTINGS})
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
            "--panels",
            metavar="FIELD,...",
            help="The fields that panels differ in; the last one varies within a group.",
        ),
    ] = ",".join(answer_grid.PANELS),
) -> None:
    """Draw the minimum number of GPUs over tokens and batch, one panel for each model and method.

    With --panels, draw one panel for each stack, optimizer or other field in which the answers differ.
    A picture shows one GPU type, one version and so on.
    If the file has several, the first one is drawn, unless an option below selects another.

    $ ado-autoconf plot answers.csv -o picture.png --gpu-model L40S

    $ ado-autoconf plot answers.csv -o picture.png --panels model_name,stack

    $ ado show measurements space --use-latest -o csv --output-file measurements.csv

    $ ado-autoconf plot measurements.csv -o picture.png
    """
    wanted = {
        setting: context.params[setting] for setting in answer_grid.SETTINGS if not is_empty(context.params[setting])
    }
    with exit_codes():
        kind = picture_kind(picture)
        try:
            panels_of = answer_grid.panels_of(panels)
        except ValueError as error:
            raise BadInput(str(error)) from None
        table = read_table(answers)
        locate: Callable[..., Any] = partial(_located, called(answers))
        chosen, notes = locate(answer_grid.choose, locate(answer_grid.points, table), wanted, panels_of)
        chart = locate(answer_grid.chart, chosen, panels_of)
        for sentence in notes:
            note(f"{called(answers)}: {sentence}")
        figure = heatmap.draw(chart)
        with output(picture) as stream:
            figure.savefig(stream, format=kind)


def _located(source: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of ``answer_grid`` and prepend the name of the file to its error messages."""
    try:
        return function(*arguments)
    except ValueError as error:
        separator = ", " if str(error).startswith("line ") else ": "
        raise BadInput(f"{source}{separator}{error}") from None
