"""Errors that name a file, and files and folders that appear complete or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from autoconf.errors import BadInput

STANDARD_STREAM = "-"
T = TypeVar("T")

_unfinished: set[Path] = set()


def called(path: str) -> str:
    """What messages call a file."""
    return "standard input" if path == STANDARD_STREAM else path


def reason(error: Exception) -> str:
    """What went wrong, without the number of the error and the path.

    >>> reason(FileNotFoundError(2, "No such file or directory", "jobs.csv")), reason(ValueError("embedded null byte"))
    ('No such file or directory', 'embedded null byte')
    """
    return getattr(error, "strerror", None) or str(error)


def cannot_read(path: object, error: Exception, what: str = "it") -> BadInput:
    """The error of a file that cannot be read.

    Args:
        path: what messages call the file.
        error: why; an ``OSError``, or the ``ValueError`` of a path that cannot be one.
        what: as which it cannot be read, such as "it as JSON".
    """
    return BadInput(f"{path}: cannot read {what}: {reason(error)}")


def cannot_write(path: object, error: Exception, what: str = "it") -> BadInput:
    """The error of a file or a folder that cannot be written; likewise."""
    return BadInput(f"{path}: cannot write {what}: {reason(error)}")


@contextmanager
def opened(path: object, opening: Callable[[], AbstractContextManager[T]], what: str = "it") -> Iterator[T]:
    """Open something to write to. What fails later is no fault of the path, and raises what it raises.

    Args:
        path: what messages call it.
        opening: opens it.
        what: what cannot be written.

    Raises:
        BadInput: it cannot be opened.
    """
    with ExitStack() as stack:
        try:
            entered = stack.enter_context(opening())
        except (OSError, ValueError) as error:
            raise cannot_write(path, error, what) from None
        yield entered


@contextmanager
def appearing_file(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A file that is complete when it appears. It replaces another one, whose mode it keeps; on an error nothing does.

    Args:
        path: the file.
        mode: of a new file, less what the process masks.

    Raises:
        OSError: it cannot be written.
    """
    with temporary(_scratch(path, ".ado-autoconf-")) as scratch:
        with open(scratch, "xb", opener=lambda file, flags: os.open(file, flags, mode)) as stream:
            yield stream
        if path.exists():
            shutil.copymode(path, scratch)
        os.replace(scratch, path)


@contextmanager
def appearing_folder(
    folder: Path, mode: int = 0o777, replace: bool = True, prefix: str = ".ado-autoconf-"
) -> Iterator[Path]:
    """A scratch folder that becomes ``folder`` when all went well, and vanishes otherwise.

    Args:
        folder: the folder.
        mode: of it, less what the process masks.
        replace: whether it replaces a folder that is there already, or is dropped.
        prefix: how the name of the scratch folder begins, by which a later process finds one that was abandoned.

    Raises:
        OSError: it cannot be made.
    """
    with temporary(_scratch(folder, prefix)) as scratch:
        scratch.mkdir(mode=mode, parents=True)
        yield scratch
        if replace:
            shutil.rmtree(folder, ignore_errors=True)
        if replace or not folder.exists():
            scratch.rename(folder)


def _scratch(target: Path, prefix: str) -> Path:
    """A new name next to ``target``, on the same file system, for what is not complete yet."""
    return target.with_name(f"{prefix}{secrets.token_hex(8)}.tmp")


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """A file or folder that is removed afterwards, if it still exists, whatever happens."""
    _unfinished.add(path)
    try:
        yield path
    finally:
        _remove(path)
        _unfinished.discard(path)


def remove_unfinished() -> None:
    """Remove what is ``temporary`` now: for a process that ends without an exception."""
    for path in [*_unfinished]:
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink()
