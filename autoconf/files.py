"""Write files and folders completely or not at all."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autoconf.errors import BadInput

STANDARD_STREAM = "-"

# Files and folders that are not complete yet. Code that ends the process without an exception must remove them.
unfinished: set[Path] = set()


def called(path: str) -> str:
    """The name of a file in messages."""
    return "standard input" if path == STANDARD_STREAM else path


def scratch_path(target: Path) -> Path:
    """A new path next to ``target``, on the same file system, for a file or folder that is not complete yet."""
    return target.with_name(f".ado-autoconf-{secrets.token_hex(8)}.tmp")


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yield a scratch folder that replaces ``folder`` if the block succeeds and is removed otherwise."""
    scratch = scratch_path(folder)
    unfinished.add(scratch)
    try:
        scratch.mkdir(parents=True)
    except OSError as error:
        raise BadInput(f"{folder.parent}: cannot write to it: {error.strerror or error}") from None
    try:
        yield scratch
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        unfinished.discard(scratch)
