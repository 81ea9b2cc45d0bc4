"""The card of a version, and reading a version's files by it.

A card holds the domain, how the version decides, what it was made with, and the digest of every other file. The digest
of the card itself must come from somewhere else: nothing is used, let alone unpickled, before it was verified.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer

from autoconf.errors import AutoConfError
from autoconf.memory.reserve import Reserve
from autoconf.predictor.integrity import digest as digest
from autoconf.predictor.integrity import read_file, read_files

CARD = "card.json"


class _Typed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Gpu(_Typed):
    """A GPU type: memory that CUDA reports as usable, the other names it goes by, and its compute capability."""

    usable_gib: float
    aliases: list[str] = []
    compute_capability: float | None = None  # not on the cards of versions up to 2.0.0

    @model_serializer(mode="wrap")
    def _as_on_cards(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A card names no compute capability where the version does not know it, as those up to 2.0.0 were written."""
        fields: dict[str, Any] = serialize(self)
        return {name: value for name, value in fields.items() if value is not None}


class Model(_Typed):
    """A model: its aliases, and the longest sample where learned positions limit it."""

    aliases: list[str] = []
    max_tokens_per_sample: int | None = None


class Domain(_Typed):
    """The jobs that a version answers."""

    models: dict[str, Model]
    methods: list[str]
    gpus: dict[str, Gpu]
    max_tokens_per_sample: int
    max_batch_size: int
    max_gpus: int


class Card(_Typed):
    """What a version is: its domain, how it decides, what made it, the digests of its files, how good it is."""

    version: str
    created: str = ""  # the day, of a released version
    domain: Domain
    threshold: float  # a job is said to fit where the predicted probability reaches this
    reserve: Reserve | None = None  # safety margin, learned from real runs; None: the predictor learned it
    least_headroom_gib: float | None = None  # below it nothing fits; None: the predictor alone decides, as before 2.1
    libraries: dict[str, str]
    files: dict[str, str]  # path in the version's folder -> SHA-256
    evaluation: dict[str, Any] = {}
    made_from: dict[str, str] = {}  # of a user's version: what it was made from -> SHA-256


RELEASED_AGAIN = "reinstall autoconf-gpus"  # what helps where a released version is not whole


def read_card(folder: Path, sha256: str, remedy: str = RELEASED_AGAIN) -> Card:
    """Read a version's card, which must have the given digest.

    Args:
        folder: of the version.
        sha256: digest of the card.
        remedy: what the user may do if the card is another.

    Raises:
        AutoConfError: the card is missing, altered or not one.
    """
    try:
        content = read_file(folder / CARD)
        if digest(content) != sha256:
            raise AutoConfError(f"version {folder.name}: {CARD} was altered (in {folder}); {remedy}")
        return Card.model_validate_json(content)
    except (OSError, ValidationError) as error:
        raise AutoConfError(f"version {folder.name}: cannot read {CARD}: {error}") from error


class VersionFiles(NamedTuple):
    """A version as it was read and verified: its card, and the content of every other file by its path."""

    card: Card
    files: dict[str, bytes]


def read_version(folder: Path, sha256: str, remedy: str = RELEASED_AGAIN) -> VersionFiles:
    """Read all files of a version, and check them on nothing but the digest of its card.

    Args:
        folder: of the version.
        sha256: digest of the card.
        remedy: what the user may do if a file is another one.

    Raises:
        AutoConfError: a file is missing, altered, extra, a link or not a regular file; the message names it.
    """
    card = read_card(folder, sha256, remedy)
    return VersionFiles(card, read_files(folder, card.files, f"version {card.version}", remedy, also=CARD))


def verified_card(folder: Path, sha256: str, remedy: str = RELEASED_AGAIN) -> Card:
    """The card of a version whose files are all verified; arguments and errors as ``read_version`` has them."""
    return read_version(folder, sha256, remedy).card


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, except the card, which holds them."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != CARD)
    return {p.relative_to(folder).as_posix(): digest(p.read_bytes()) for p in files}
