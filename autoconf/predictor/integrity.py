"""Read the files of a version once, verify their digests, and load the predictor from the verified content.

No file is read twice, so swapping a file, a link or a folder in the meantime does not change what is loaded.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath

from autoconf.errors import AutoConfError
from autoconf.files import reason, temporary

_LARGEST = 1 << 30  # bytes of one file; a whole version has 5 MB
_TEMPORARY = (None, "/dev/shm")  # the system's folder for temporary files; memory if that cannot be written to


def digest(content: bytes) -> str:
    """The SHA-256 of a file's content."""
    return hashlib.sha256(content).hexdigest()


def read_file(path: Path, *, follow_links: bool = False) -> bytes:
    """Read a regular file; never block, as reading a pipe would.

    Raises:
        OSError: the path is a link or not a regular file, or the file is too large or cannot be read.
    """
    if not follow_links and path.is_symlink():
        raise OSError(f"{path} is a link")
    no_links = 0 if follow_links else getattr(os, "O_NOFOLLOW", 0)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | no_links
    with open(os.open(path, flags), "rb") as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise OSError(f"{path} is not a regular file")
        content = stream.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise OSError(f"{path} has more than {_LARGEST >> 30} GiB")
    return content


def read_files(folder: Path, expected: Mapping[str, str], what: str, remedy: str, also: str) -> dict[str, bytes]:
    """Read the files of a folder, which must contain exactly the expected files.

    Args:
        folder: folder of a version.
        expected: SHA-256 of each file, by path in the folder.
        what: name of the folder's content in messages.
        remedy: advice to the user if a file differs.
        also: a file that may be there too and is not read.

    Returns:
        The content of each file, by path.

    Raises:
        AutoConfError: a file is missing, altered, extra, a link or not a regular file; the message names it.
    """
    try:
        found = _names(folder, {*expected, also})
        problems: dict[str, list[str]] = {
            "is a link": sorted(name for name, kind in found.items() if kind == "link"),
            "does not belong to it": sorted(found.keys() - {*expected, also}),
            "is missing": sorted(expected.keys() - found.keys()),
            "is not a regular file": sorted(name for name, kind in found.items() if kind != "file"),
        }
        contents = {} if any(problems.values()) else {name: read_file(folder / name) for name in sorted(expected)}
    except OSError as error:
        raise AutoConfError(f"{what}: cannot read its files: {error}") from error
    problems["was altered"] = [name for name, content in contents.items() if digest(content) != expected[name]]
    for problem, names in problems.items():
        if names:
            raise AutoConfError(f"{what}: {', '.join(names)} {problem} (in {folder}); {remedy}")
    return contents


def read_named(folder: Path, expected: Mapping[str, str], what: str, remedy: str) -> dict[str, bytes]:
    """Read some files of a folder, which may contain others; arguments, result and errors as in ``read_files``."""
    contents = {}
    for name, sha256 in expected.items():
        try:
            contents[name] = read_file(folder / name)
        except OSError as error:
            raise AutoConfError(f"{what}: cannot read {name} (in {folder}): {reason(error)}; {remedy}") from error
        if digest(contents[name]) != sha256:
            raise AutoConfError(f"{what}: {name} was altered (in {folder}); {remedy}")
    return contents


def _names(folder: Path, expected: set[str], inside: str = "") -> dict[str, str]:
    """The entries of a folder, each with its kind: file, link, folder or other. Unexpected folders are not opened."""
    folders = {parent.as_posix() for name in expected for parent in PurePosixPath(name).parents}
    found = {}
    with os.scandir(folder / inside) as entries:
        for entry in entries:
            name = f"{inside}{entry.name}"
            if entry.is_symlink():
                found[name] = "link"
            elif entry.is_dir(follow_symlinks=False):
                found |= _names(folder, expected, f"{name}/") if name in folders else {name: "folder"}
            else:
                found[name] = "file" if entry.is_file(follow_symlinks=False) else "other"
    return found


@contextmanager
def private_copy(files: Mapping[str, bytes]) -> Iterator[Path]:
    """Yield a folder with verified files that only this user can read, and remove it afterwards.

    Args:
        files: content of each file, by path in the folder.

    Raises:
        AutoConfError: no folder for temporary files can be written to.
    """
    failed = []
    for parent in _TEMPORARY:
        folder = None
        with ExitStack() as stack:
            try:
                folder = Path(tempfile.mkdtemp(prefix="ado-autoconf-", dir=parent))  # mode 0700
                stack.enter_context(temporary(folder))
                _write(files, folder)
            except OSError as error:
                failed.append(f"{folder or parent or 'temporary files'}: {reason(error)}")
                continue
            yield folder
            return
    raise AutoConfError(
        f"cannot write a private copy of the predictor ({'; '.join(failed)}); set TMPDIR to a folder with free space"
    )


def _write(files: Mapping[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        os.makedirs((folder / name).parent, exist_ok=True)
        (folder / name).write_bytes(content)


def check_ownership(folder: Path) -> None:
    """Check that only this user and root can have written to a folder.

    Raises:
        AutoConfError: the folder belongs to another user, or other users can write to it.
        OSError: the folder cannot be inspected.
    """
    if not hasattr(os, "geteuid"):
        return  # Windows: access control lists are not checked
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.geteuid(), 0) or found.st_mode & 0o022:
        raise AutoConfError(
            f"{folder}: must belong to you and be writable only by you, because predictors in it are executed; "
            "remove it, or set XDG_CACHE_HOME to another folder"
        )
