"""Commands whose options go by several names, of which help shows one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperOption

AS_CSV = "--as-csv"  # what --csv without a file means


def plain(name: str) -> str:
    """An option's name with - for _; typer applies it to what is typed, and to names of commands.

    >>> plain("model_name")
    'model-name'
    """
    return name.replace("_", "-")


class Command(TyperCommand):
    """A command whose help shows the first name of each option and its short one."""

    advice: ClassVar[Mapping[str, str]] = {}  # what to say to somebody who gives an option that there is not

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {name for param in self.params for name in param.opts}
        given = [plain(arg.partition("=")[0]) for arg in _options(args)]
        for name in given:
            if name not in known and name in self.advice:
                typer.secho(f"{name}: no such option; {self.advice[name]}", err=True, fg="red")
                raise typer.Exit(2)
        return super().parse_args(ctx, [*_csv_without_file(args)] if AS_CSV in known else args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        shown = copy(self)
        shown.params = [_with_main_names(param) for param in self.params]
        TyperCommand.format_help(shown, ctx, formatter)


def advising(advice: Mapping[str, str]) -> type[Command]:
    """A command that says what to give instead of options that it does not have."""
    return type("AdvisingCommand", (Command,), {"advice": advice})


def _options(args: list[str]) -> list[str]:
    """The arguments that are read as options."""
    end = args.index("--") if "--" in args else len(args)
    return [arg for arg in args[:end] if arg.startswith("-")]


def _csv_without_file(args: list[str]) -> Iterator[str]:
    """Arguments in which ``--csv``, where no file follows, is the option for CSV as output."""
    for arg, following in zip(args, [*args[1:], "--"], strict=False):
        alone = arg == "--csv" and following != "-" and following.startswith("-")
        yield AS_CSV if alone else arg


def _with_main_names(param: Any) -> Any:
    if not isinstance(param, TyperOption):
        return param
    shown = copy(param)
    shown.opts = [name for name in param.opts if name == param.opts[0] or not name.startswith("--")]
    return shown
