"""Versions of a user's own: a folder of them beside the shipped ones, and the digests that they had when first used."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from autoconf.errors import AutoConfError
from autoconf.predictor.cards import CARD, digest

VARIABLE = "AUTOCONF_MODELS"
ModelsFolder = str | os.PathLike[str] | None  # a folder of versions; None is the one that the environment names
# The number of the version it was made from, a +, and a name: no number that is ever released, and no path.
NAME = re.compile(r"\d+(\.\d+)*\+[a-z0-9]+([._-][a-z0-9]+)*", re.IGNORECASE)
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_PINS = "versions.json"


class NoModelsFolder(AutoConfError):
    """A user version is asked for, and no folder of user versions is known."""


class Place(NamedTuple):
    """Where a version lies, and the digest that its card must have."""

    folder: Path
    sha256: str


def folder_of(models: ModelsFolder = None) -> Path | None:
    """The folder of a user's own versions; None where there is none.

    Args:
        models: the folder; by default what the environment variable ``AUTOCONF_MODELS`` names.

    Raises:
        ValueError: ``models`` is no folder.
        AutoConfError: the environment names something that is no folder.
    """
    named = models if models is not None else os.environ.get(VARIABLE, "").strip() or None
    if named is None:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        if models is not None:
            raise ValueError(f"models: {os.fspath(models)!r} is no folder")
        raise AutoConfError(f"{VARIABLE}: {named!r} is no folder")
    return folder.resolve()


def listed_in(folder: Path | None) -> list[str]:
    """The versions in a folder, by name."""
    if folder is None:
        return []
    return sorted(path.parent.name for path in folder.glob(f"*/{CARD}") if NAME.fullmatch(path.parent.name))


def is_own(version: str) -> bool:
    """Whether a version's name is one of a user's own.

    >>> is_own("2.0.0+mine"), is_own("2.0.0")
    (True, False)
    """
    return "+" in version


def place(version: str, folder: Path | None) -> Place:
    """Where a version of a user's own lies. Its digest is the one that the name gives (``2.0.0+mine@sha256:...``), or
    else the one that it had when it was first used by this user on this machine.

    Raises:
        ValueError: the folder has no such version.
        AutoConfError: there is no folder, or the digest can be neither found nor kept.
    """
    name, _, given = version.partition("@")
    if folder is None:
        raise NoModelsFolder(f"version {name} is one of a user's own, and {VARIABLE} names no folder of such versions")
    names = listed_in(folder)
    if name not in names:
        raise ValueError(f"model_version {name!r} is not in {folder}, which has {', '.join(names) or 'none'}")
    if not given:
        return Place(folder / name, _pinned(folder / name))
    found = _DIGEST.fullmatch(given)
    if found is None:
        raise ValueError(f"model_version: after @ must come sha256: and 64 hexadecimal digits, got {given[:80]!r}")
    return Place(folder / name, found[1])


def trust(folder: Path) -> str:
    """Take a version as it is now, whatever it was before; returns the digest of its card.

    Raises:
        AutoConfError: the card cannot be read, or its digest not be kept.
    """
    return _with_pins(folder, lambda pins: pins | {str(folder.resolve()): _card_digest(folder)})


def _pinned(folder: Path) -> str:
    """The digest that a version's card had at its first use, which this is if there was none."""
    key = str(folder.resolve())
    if key in (pins := _read_pins(_pins_file())):
        return pins[key]
    return _with_pins(folder, lambda pins: {key: _card_digest(folder)} | pins)


def _with_pins(folder: Path, change: Callable[[dict[str, str]], dict[str, str]]) -> str:
    """Change what is kept, one process at a time, and return the digest of a version."""
    import filelock

    file = _pins_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{file}.lock"):
            pins = change(_read_pins(file))
            with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as scratch:
                json.dump(pins, scratch, indent=2)
            os.replace(scratch.name, file)  # whoever reads meanwhile sees all of it, or what was there before
    except OSError as error:
        given = f"{folder.name}@sha256:{_card_digest(folder)}"
        raise AutoConfError(
            f"version {folder.name}: cannot keep its digest in {file}: {error.strerror or error}; give it with the "
            f"version, as {given}"
        ) from error
    return pins[str(folder.resolve())]


def _pins_file() -> Path:
    import platformdirs

    return platformdirs.user_data_path("ado-autoconf") / _PINS


def _read_pins(file: Path) -> dict[str, str]:
    try:
        pins = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise AutoConfError(f"cannot read the digests of versions in {file}: {error}") from error
    if not isinstance(pins, dict):
        raise AutoConfError(f"cannot read the digests of versions in {file}: it is not what was written there")
    return pins


def _card_digest(folder: Path) -> str:
    try:
        return digest((folder / CARD).read_bytes())
    except OSError as error:
        raise AutoConfError(f"version {folder.name}: cannot read {CARD}: {error}") from error
