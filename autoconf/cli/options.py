"""What all commands share: exit codes, what is said of data, options made from a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any

import typer

from autoconf.errors import AutoConfError, BadInput
from autoconf.files import STANDARD_STREAM
from autoconf.jobs.job import read


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn what can go wrong into a message on standard error and an exit code."""
    try:
        yield
    except (BadInput, AutoConfError) as error:
        typer.secho(str(error), err=True, fg="red")
        raise typer.Exit(2 if isinstance(error, BadInput) else 1) from None


def note(message: str) -> None:
    typer.secho(message, err=True, fg="yellow")


def with_options(option: Callable[[str], Any], names: Iterable[str]) -> Callable[[Callable[..., None]], Any]:
    """Give a command an option for each of some names, whose value it finds in its context."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = signature(command, eval_str=True)
        more = [
            Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option(name)])
            for name in names
        ]

        @wraps(command)
        def with_options(**values: Any) -> None:
            command(**{name: values[name] for name in own.parameters})

        with_options.__signature__ = own.replace(parameters=[*own.parameters.values(), *more])  # type: ignore[attr-defined]
        return with_options

    return decorate


def version_named(text: str | None) -> str | None:
    """The version that the command line names, if it does."""
    try:
        return read("model_version", text)
    except ValueError as error:
        raise BadInput(str(error)) from None


def picture_kind(path: str) -> str:
    """The format of a picture that goes to a path, or to standard output.

    Raises:
        BadInput: the path's ending names none.
    """
    kind = "png" if path == STANDARD_STREAM else Path(path).suffix.removeprefix(".").lower()
    if kind not in ("png", "svg", "pdf"):
        raise BadInput(f"{path}: a picture's name must end in .png, .svg or .pdf")
    return kind
