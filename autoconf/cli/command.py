"""Commands whose options have several names, of which the help shows only the first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperOption

AS_CSV = "--as-csv"  # what --csv without a file means


def plain(name: str) -> str:
    """Write - for _ in a name; typer applies this function to options and to names of commands.

    >>> plain("model_name")
    'model-name'
    """
    return name.replace("_", "-")


class Command(TyperCommand):
    """A command whose help shows the first name of each option and its short one."""

    advice: ClassVar[Mapping[str, str]] = {}  # unsupported options of other tools, with what to use instead

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
    """Make a class of commands whose errors about unknown options say what to use instead."""
    return type("AdvisingCommand", (Command,), {"advice": advice})


def _options(args: list[str]) -> list[str]:
    """The arguments that are options."""
    end = args.index("--") if "--" in args else len(args)
    return [arg for arg in args[:end] if arg.startswith("-")]


def _csv_without_file(args: list[str]) -> Iterator[str]:
    """Replace ``--csv`` without a file by the option for CSV output."""
    for arg, following in zip(args, [*args[1:], "--"], strict=False):
        alone = arg == "--csv" and following != "-" and following.startswith("-")
        yield AS_CSV if alone else arg


def _with_main_names(param: Any) -> Any:
    if not isinstance(param, TyperOption):
        return param
    shown = copy(param)
    shown.opts = [name for name in param.opts if name == param.opts[0] or not name.startswith("--")]
    return shown
