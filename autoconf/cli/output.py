"""Write answers: CSV, JSON, and files that appear complete or not at all."""

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
from autoconf.files import STANDARD_STREAM, appearing_file, cannot_write, opened, reason
from autoconf.jobs.job import Workload, read
from autoconf.jobs.queries import ARGUMENTS
from autoconf.jobs.values import is_empty, whole_number


@contextmanager
def output(path: str | None) -> Iterator[BinaryIO]:
    """Open what a result goes to: a file, which appears complete or not at all, or standard output.

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
    with _writing(path), opened(path, lambda: appearing_file(target)) as stream:
        yield stream


def _mode(path: str) -> int | None:
    """What a path leads to; None where there is nothing yet, unlike where that cannot be told (a loop of links)."""
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
        if error.errno == errno.EPIPE:  # the reader of our output stopped, which is not a failure
            raise
        raise AutoConfError(f"{path}: writing failed: {reason(error)}") from None


def write_csv(pieces: Iterable[pd.DataFrame], stream: BinaryIO) -> None:
    """Write answers as CSV in UTF-8, lines ended by a line feed."""
    for number, piece in enumerate(pieces):
        stream.write(piece.to_csv(index=False, header=number == 0, lineterminator="\n").encode("utf-8"))


def write_json(pieces: Iterable[pd.DataFrame], stream: BinaryIO) -> None:
    """Write answers as a JSON list with an object, on a line of its own, for each job."""
    separator = "[\n"
    for piece in pieces:
        for row in json_rows(piece):
            stream.write(f"{separator}{json.dumps(row, ensure_ascii=False)}".encode())
            separator = ",\n"
    stream.write(b"[]\n" if separator == "[\n" else b"\n]\n")


def write_object(shown: Any, stream: BinaryIO) -> None:
    """Write one JSON value on lines that people can read."""
    stream.write(f"{json.dumps(shown, indent=2, ensure_ascii=False)}\n".encode())


def json_rows(piece: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Answered jobs as objects: numbers as numbers, what is absent as ``None``, columns of the user's own as text."""
    for row in piece.astype(object).to_dict("records"):
        yield {str(column): _json_value(str(column), value) for column, value in row.items()}


def _json_value(column: str, value: Any) -> Any:
    if column in Workload.model_fields:
        return None if is_empty(value) else read(column, value)
    if column in ARGUMENTS:
        return whole_number(column, value)
    return value if isinstance(value, list) else None if pd.isna(value) else value
