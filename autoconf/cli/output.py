"""Write answers as CSV or JSON; a file is written completely or not at all."""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd

from autoconf.errors import AutoConfError, BadInput
from autoconf.files import STANDARD_STREAM, atomic_file, cannot_write, opened, reason
from autoconf.jobs.job import Workload, read
from autoconf.jobs.queries import ARGUMENTS, RUN_LENGTH
from autoconf.jobs.values import is_empty, whole_number


@contextmanager
def output(path: str | None) -> Iterator[BinaryIO]:
    """Open the output of a command: a file, which is written completely or not at all, or standard output.

    Args:
        path: ``None`` or ``-`` for standard output.

    Raises:
        BadInput: the path cannot be written to.
        AutoConfError: writing failed, as on a full disk.
    """
    if path is None or path == STANDARD_STREAM:
        if sys.stdout is None:
            raise BadInput("standard output: cannot write it: it is closed")
        with _writing("standard output"):
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        return
    mode = _mode(path)
    if mode is not None and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a device or pipe is never replaced
        with _writing(path), opened(path, lambda: open(path, "wb")) as stream:
            yield stream
        return
    target = Path(os.path.realpath(path))  # a link stays a link
    if mode is not None and (stat.S_ISDIR(mode) or not os.access(target, os.W_OK)):
        raise BadInput(f"{path}: cannot write it: {os.strerror(errno.EISDIR if stat.S_ISDIR(mode) else errno.EACCES)}")
    with _writing(path), opened(path, lambda: atomic_file(target)) as stream:
        yield stream


def _mode(path: str) -> int | None:
    """The mode of a path; ``None`` if it does not exist. Raises if this is unknown, such as for a loop of links."""
    try:
        return os.stat(Path(path)).st_mode
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise cannot_write(path, error) from None


@contextmanager
def _writing(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.EPIPE:  # the reader of the output stopped, which is not a failure
            raise
        raise AutoConfError(f"{path}: writing failed: {reason(error)}") from None


def write_csv(pieces: Iterable[pd.DataFrame], stream: BinaryIO) -> None:
    """Write answers as CSV in UTF-8 with line feeds."""
    for number, piece in enumerate(pieces):
        stream.write(piece.to_csv(index=False, header=number == 0, lineterminator="\n").encode("utf-8"))


def write_json(pieces: Iterable[pd.DataFrame], stream: BinaryIO) -> None:
    """Write answers as a JSON list with one object per job, each on its own line."""
    separator = "[\n"
    for piece in pieces:
        for row in json_rows(piece):
            stream.write(f"{separator}{json.dumps(row, ensure_ascii=False)}".encode())
            separator = ",\n"
    stream.write(b"[]\n" if separator == "[\n" else b"\n]\n")


def write_object(shown: Any, stream: BinaryIO) -> None:
    """Write one JSON value, indented."""
    stream.write(f"{json.dumps(shown, indent=2, ensure_ascii=False)}\n".encode())


def json_rows(piece: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Convert answered jobs to objects: numbers stay numbers, absent values are ``None``, other columns are text."""
    for row in piece.astype(object).to_dict("records"):
        yield {str(column): _json_value(str(column), value) for column, value in row.items()}


def _json_value(column: str, value: Any) -> Any:
    if column in Workload.model_fields:
        return None if is_empty(value) else read(column, value)
    if column in RUN_LENGTH and is_empty(value):
        return None
    if column in (*ARGUMENTS, *RUN_LENGTH):
        return whole_number(column, value)
    return value if isinstance(value, list) else None if pd.isna(value) else value
