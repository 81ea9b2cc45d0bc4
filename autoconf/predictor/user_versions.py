"""User versions: the folders that hold them, and the digests that they had at their first use."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import NamedTuple

from autoconf.errors import AutoConfError
from autoconf.files import atomic_file, reason
from autoconf.predictor.cards import CARD, digest
from autoconf.predictor.integrity import read_file
from autoconf.predictor.locks import LOADING

VARIABLE = "AUTOCONF_MODELS"
ModelsFolder = str | os.PathLike[str] | None  # a folder of versions; None means the folder of ``AUTOCONF_MODELS``
# The number of the version it was made from, a +, and a name. It is never a released number or a path.
NAME = re.compile(r"\d+(\.\d+)*\+[a-z0-9]+([._-][a-z0-9]+)*", re.IGNORECASE)
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_PIN = re.compile(r"[0-9a-f]{64}")
_PINS = "versions.json"


class NoModelsFolder(AutoConfError):
    """A user version was requested, but no folder of user versions is known."""


class VersionFolder(NamedTuple):
    """The folder of a version, and the expected digest of its card."""

    folder: Path
    sha256: str


def folder_of(models: ModelsFolder = None) -> Path | None:
    """The folder of user versions, as an absolute path; ``None`` if none is set.

    Args:
        models: the folder; by default the one that the environment variable ``AUTOCONF_MODELS`` names.

    Raises:
        ValueError: ``models`` is not a directory.
        NoModelsFolder: ``AUTOCONF_MODELS`` is not a directory.
    """
    named = models if models is not None else os.environ.get(VARIABLE, "").strip() or None
    if named is None:
        return None
    folder = Path(named).expanduser().absolute()
    if not folder.is_dir():
        if models is not None:
            raise ValueError(f"models: {os.fspath(models)!r} is not a directory")
        raise NoModelsFolder(f"{VARIABLE}: {named!r} is not a directory")
    return folder


def listed_in(folder: Path | None) -> list[str]:
    """List the names of the versions in a folder."""
    if folder is None:
        return []
    return sorted(path.parent.name for path in folder.glob(f"*/{CARD}") if NAME.fullmatch(path.parent.name))


def is_own(version: str) -> bool:
    """Whether a name is that of a user version.

    >>> is_own("2.0.0+mine"), is_own("2.0.0")
    (True, False)
    """
    return "+" in version


def place(version: str, folder: Path | None) -> VersionFolder:
    """Locate a user version and its expected digest.

    The digest is the one in the name (``2.0.0+mine@sha256:...``), or else the one that the version had when this user
    first used it on this machine, under the given path or under the path that links resolve to.

    Raises:
        ValueError: the folder has no such version, or the text after ``@`` is not a digest.
        AutoConfError: there is no folder, the version has changed since its first use, or its digest cannot be stored.
    """
    name, at, given = version.partition("@")
    if folder is None:
        raise NoModelsFolder(f"version {name} is a user version, but {VARIABLE} does not name a folder of versions")
    names = listed_in(folder)
    if name not in names:
        raise ValueError(f"model_version {name!r} is not in {folder}, which has {', '.join(names) or 'none'}")
    if not at:
        return VersionFolder(folder / name, _pinned(folder / name))
    found = _DIGEST.fullmatch(given.lower())
    if found is None:
        raise ValueError(f"model_version: after @ must come sha256: and 64 hexadecimal digits, got {given[:80]!r}")
    return VersionFolder(folder / name, found[1])


# The advice where the files of a user version differ from its card, or the card differs from the digest that was given.
RESTORE = "restore its files, or make it again with ado-autoconf train"


def _accept(name: str) -> str:
    """The advice to a user whose version has another card than at its first use."""
    return f"if you changed it, accept it with: ado-autoconf versions {name} --trust"


def trust(folder: Path) -> str:
    """Accept the current content of a version, and return the digest of its card.

    Raises:
        AutoConfError: the card cannot be read, or its digest cannot be stored.
    """
    found = _card_digest(folder)
    pin(folder, found)
    return found


def pin(folder: Path, sha256: str) -> None:
    """Store the digest that the card of a version must have from now on.

    Raises:
        AutoConfError: it cannot be stored.
    """
    with LOADING:
        _keep(folder, sha256)


def _pinned(folder: Path) -> str:
    """The digest of a version's card; it must equal the digest at the first use, which is stored."""
    with LOADING:
        found = _card_digest(folder)
        pins = _read_pins(_pins_file())
        known = [pins.get(path) for path in _paths(folder)]
        if any(pin not in (None, found) for pin in known):
            raise AutoConfError(f"version {folder.name}: {CARD} was altered (in {folder}); {_accept(folder.name)}")
        if None in known:
            _keep(folder, found)
    return found


def _paths(folder: Path) -> tuple[str, str]:
    """The path of a version as given and with links resolved; a changed link changes only one of them."""
    return str(folder.absolute()), str(folder.resolve())


def _keep(folder: Path, sha256: str) -> None:
    """Store the digest of a version; a file lock lets one process at a time do so."""
    import filelock

    file = _pins_file()
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with filelock.FileLock(f"{file}.lock"):
            pins = _read_pins(file) | dict.fromkeys(_paths(folder), sha256)
            with atomic_file(file, mode=0o600) as stream:
                stream.write(json.dumps(pins, indent=2).encode())
    except OSError as error:
        raise AutoConfError(
            f"version {folder.name}: cannot keep its digest in {file}: {reason(error)}; give it with the "
            f"version, as {folder.name}@sha256:{sha256}"
        ) from error


def _pins_file() -> Path:
    import platformdirs

    return platformdirs.user_data_path("ado-autoconf") / _PINS


def _read_pins(file: Path) -> dict[str, str]:
    """The stored digests, by path."""
    try:
        pins = json.loads(read_file(file, follow_links=True))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise AutoConfError(f"cannot read the digests of versions in {file}: {error}") from error
    if not isinstance(pins, dict) or not all(isinstance(pin, str) and _PIN.fullmatch(pin) for pin in pins.values()):
        raise AutoConfError(
            f"cannot read the digests of versions in {file}: it must have a SHA-256 for each path; repair or remove it"
        )
    return pins


def _card_digest(folder: Path) -> str:
    try:
        return digest(read_file(folder / CARD))
    except OSError as error:
        raise AutoConfError(f"version {folder.name}: cannot read {CARD}: {error}") from error
