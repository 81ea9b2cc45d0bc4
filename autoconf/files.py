"""Write files and folders completely or not at all, and make errors that name a file."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import BinaryIO, TypeVar

from autoconf.errors import BadInput

STANDARD_STREAM = "-"
T = TypeVar("T")

_unfinished: set[Path] = set()
_given: ContextVar[Mapping[str, str] | None] = ContextVar("given", default=None)


def called(path: str) -> str:
    """The name of a file in messages."""
    return "standard input" if path == STANDARD_STREAM else path


def reason(error: Exception) -> str:
    """The message of an error, without the error number and the path.

    >>> reason(FileNotFoundError(2, "No such file or directory", "jobs.csv")), reason(ValueError("embedded null byte"))
    ('No such file or directory', 'embedded null byte')
    """
    return getattr(error, "strerror", None) or str(error)


def cannot_read(path: object, error: Exception, what: str = "it") -> BadInput:
    """Make the error for a file that cannot be read.

    Args:
        path: the name of the file in messages.
        error: the cause: an ``OSError``, or the ``ValueError`` of an invalid path.
        what: the object of the sentence, such as "it as JSON".
    """
    return BadInput(f"{path}: cannot read {what}: {reason(error)}")


def cannot_write(path: object, error: Exception, what: str = "it") -> BadInput:
    """Make the error for a file or a folder that cannot be written; arguments as in ``cannot_read``."""
    return BadInput(f"{path}: cannot write {what}: {reason(error)}")


@contextmanager
def only_given(texts: Mapping[str, str]) -> Iterator[None]:
    """Read only these texts instead of files, so that a job from another machine cannot name files of this one.

    Args:
        texts: the text of each file by its name, which is never used as a path.
    """
    token = _given.set({os.path.normpath(name): text for name, text in texts.items()})
    try:
        yield
    finally:
        _given.reset(token)


def given_files() -> Mapping[str, str] | None:
    """The texts to read instead of files, by normalized name; ``None`` if files are read.

    >>> with only_given({"./train.sh": "accelerate launch train.py"}):
    ...     print(given_files())
    {'train.sh': 'accelerate launch train.py'}
    """
    return _given.get()


def is_file(path: Path) -> bool:
    """Whether there is such a file, or such a text where only texts are read."""
    texts = given_files()
    return path.is_file() if texts is None else os.path.normpath(path) in texts


def file_bytes(path: str, most: int) -> bytes:
    """Read the first bytes of a file, or of a text where only texts are read.

    Args:
        path: the file.
        most: bytes to read.

    Raises:
        OSError: the file cannot be read.
        ValueError: the path is invalid.
    """
    texts = given_files()
    if texts is None:
        with open(path, "rb") as file:
            return file.read(most)
    if os.path.normpath(path) not in texts:
        raise FileNotFoundError(errno.ENOENT, "is not one of the given files", path)
    return texts[os.path.normpath(path)].encode("utf-8", "surrogatepass")[:most]


@contextmanager
def opened(path: object, opening: Callable[[], AbstractContextManager[T]], what: str = "it") -> Iterator[T]:
    """Open a file or a folder to write to. Only errors on opening become ``BadInput``; later errors are unchanged.

    Args:
        path: the name of the file or folder in messages.
        opening: the function that opens it.
        what: the object of the sentence, as in ``cannot_write``.

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
def atomic_file(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Write a file completely or not at all. An existing file is replaced, and its mode is kept.

    Args:
        path: the file.
        mode: mode of a new file, before the umask of the process.

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
def atomic_folder(
    folder: Path, mode: int = 0o777, replace: bool = True, prefix: str = ".ado-autoconf-"
) -> Iterator[Path]:
    """Yield a scratch folder that becomes ``folder`` if the block succeeds and is removed otherwise.

    Args:
        folder: the folder.
        mode: mode of the folder, before the umask of the process.
        replace: whether to replace an existing folder; otherwise the scratch folder is removed.
        prefix: prefix of the name of the scratch folder, by which a later process can find an abandoned one.

    Raises:
        OSError: the folder cannot be made.
    """
    with temporary(_scratch(folder, prefix)) as scratch:
        scratch.mkdir(mode=mode, parents=True)
        yield scratch
        if replace:
            shutil.rmtree(folder, ignore_errors=True)
        if replace or not folder.exists():
            scratch.rename(folder)


def _scratch(target: Path, prefix: str) -> Path:
    """A new path next to ``target``, on the same file system, for a file or folder that is not complete yet."""
    return target.with_name(f"{prefix}{secrets.token_hex(8)}.tmp")


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """Remove a file or folder at the end of the block, if it still exists, also after an error."""
    _unfinished.add(path)
    try:
        yield path
    finally:
        _remove(path)
        _unfinished.discard(path)


def remove_unfinished() -> None:
    """Remove all ``temporary`` files and folders, for a process that ends without an exception."""
    for path in [*_unfinished]:
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink()
