"""Helpers of the commands: exit codes, notes on standard error, and generated options."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from enum import IntEnum
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, get_args

import typer

from autoconf.errors import AutoConfError, BadInput
from autoconf.files import STANDARD_STREAM
from autoconf.jobs.job import read


class ExitCode(IntEnum):
    """Exit codes of the command; a command ended by signal n has 128 + n."""

    ANSWERED = 0  # "no" is an answer
    BROKEN_ENVIRONMENT = 1
    BAD_INPUT = 2
    NOTHING_TO_PATCH = 3  # so that no pipe applies an empty manifest
    ANSWERED_NO = 4  # with --fail-on-no


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn errors into a message on standard error and an exit code."""
    try:
        yield
    except (BadInput, AutoConfError) as error:
        typer.secho(str(error), err=True, fg="red")
        bad_input = isinstance(error, BadInput)
        raise typer.Exit(ExitCode.BAD_INPUT if bad_input else ExitCode.BROKEN_ENVIRONMENT) from None


_held: ContextVar[list[str] | None] = ContextVar("held", default=None)


def note(message: str, first: bool = False) -> None:
    """Write a line to standard error; inside ``notes_held``, collect it instead, with ``first`` before all others."""
    held = _held.get()
    if held is None:
        typer.secho(message, err=True, fg="yellow")
    else:
        held.insert(0 if first else len(held), message)


@contextmanager
def notes_held() -> Iterator[None]:
    """Collect notes, so that a late one can be written first; write all at the end, also after an error."""
    held: list[str] = []
    token = _held.set(held)
    try:
        yield
    finally:
        _held.reset(token)
        for message in held:
            note(message)


def with_options(options: Mapping[str, Any]) -> Callable[[Callable[..., None]], Any]:
    """Give a command more options, whose values are in its context.

    Args:
        options: the type of each option, annotated with a ``typer.Option``, by name. All of them are optional.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = signature(command, eval_str=True)
        more = [
            Parameter(
                name, Parameter.KEYWORD_ONLY, default=False if get_args(kind)[0] is bool else None, annotation=kind
            )
            for name, kind in options.items()
        ]

        @wraps(command)
        def run_command(**values: Any) -> None:
            command(**{name: values[name] for name in own.parameters})

        named = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in own.parameters.values()]
        run_command.__signature__ = own.replace(parameters=[*more, *named])  # type: ignore[attr-defined]
        return run_command

    return decorate


def version_named(text: str | None) -> str | None:
    """The version given on the command line, if any."""
    try:
        return read("model_version", text)
    except ValueError as error:
        raise BadInput(str(error)) from None


def picture_kind(path: str) -> str:
    """The format of a picture, by the suffix of its path; PNG on standard output.

    Raises:
        BadInput: the path has another suffix.
    """
    kind = "png" if path == STANDARD_STREAM else Path(path).suffix.removeprefix(".").lower()
    if kind not in ("png", "svg", "pdf"):
        raise BadInput(f"{path}: a picture's name must end in .png, .svg or .pdf")
    return kind
