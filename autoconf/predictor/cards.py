"""The card of a version, and verified reading of a version's files.

A card holds the domain, the decision rule, the libraries used, and the digest of every other file. The digest of the
card itself must come from elsewhere. No file is used, let alone unpickled, before it is verified.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer

from autoconf.errors import AutoConfError
from autoconf.memory.fragmentation import Fragmentation, OutsidePyTorch
from autoconf.memory.reserve import Reserve
from autoconf.memory.towers import Tower, towers
from autoconf.predictor.cluster_speed import ClusterSpeed
from autoconf.predictor.integrity import digest as digest
from autoconf.predictor.integrity import read_file, read_files, read_named

CARD = "card.json"


class _Typed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Gpu(_Typed):
    """A GPU type: memory that CUDA reports as usable, other names, compute capability, and why it is not verified."""

    usable_gib: float
    aliases: list[str] = []
    compute_capability: float | None = None  # absent from the cards of versions up to 2.0.0
    unverified: str = ""

    @model_serializer(mode="wrap")
    def _as_on_cards(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit what is unknown or empty, as the cards of versions up to 2.0.0 do."""
        fields: dict[str, Any] = serialize(self)
        return {name: value for name, value in fields.items() if value is not None and value != ""}


class Model(_Typed):
    """A model: its aliases, its longest sample if learned positions limit it, and its config if it is a user's."""

    aliases: list[str] = []
    max_tokens_per_sample: int | None = None
    config: dict[str, Any] = {}  # from which its speed is computed; the package has those of its own models

    @model_serializer(mode="wrap")
    def _as_on_cards(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit an empty config, as the cards of released versions do."""
        fields: dict[str, Any] = serialize(self)
        return {name: value for name, value in fields.items() if name != "config" or value}


# The values of settings in versions up to 2.0.0, whose cards do not have these fields.
_UP_TO_2_0_0: dict[str, list[Any]] = {
    "torch_dtype": ["bfloat16", "float32"],
    "mixed_precision": ["no", "bf16"],
    "optim": ["adamw_torch", "adamw_torch_fused", "adamw_bnb_8bit", "paged_adamw_8bit", "adafactor", "sgd"],
    "sharding": ["ddp", "fsdp1", "fsdp2"],
    "upcast_unquantized": ["none"],
    "offload": ["none"],
    "allocator": ["default"],
    "objective": ["sft"],
    "quantization": ["none", "nf4", "nf4_single"],
    "gradient_sync": ["last"],
    "loading": ["cpu", "rank0"],  # as they assume; they do not count it
    "gradient_checkpointing": ["none", "reentrant", "non-reentrant"],
    "trained_modules": ["none"],
    "use_dora": [False],
}


class Domain(_Typed):
    """The jobs that a version supports."""

    models: dict[str, Model]
    methods: list[str]
    gpus: dict[str, Gpu]
    max_tokens_per_sample: int
    max_batch_size: int
    max_gpus: int
    torch_dtype: list[str] = _UP_TO_2_0_0["torch_dtype"]
    mixed_precision: list[str] = _UP_TO_2_0_0["mixed_precision"]
    optim: list[str] = _UP_TO_2_0_0["optim"]
    sharding: list[str] = _UP_TO_2_0_0["sharding"]
    upcast_unquantized: list[str] = _UP_TO_2_0_0["upcast_unquantized"]
    offload: list[str] = _UP_TO_2_0_0["offload"]
    allocator: list[str] = _UP_TO_2_0_0["allocator"]
    objective: list[str] = _UP_TO_2_0_0["objective"]
    quantization: list[str] = _UP_TO_2_0_0["quantization"]
    gradient_sync: list[str] = _UP_TO_2_0_0["gradient_sync"]
    loading: list[str] = _UP_TO_2_0_0["loading"]
    gradient_checkpointing: list[str] = _UP_TO_2_0_0["gradient_checkpointing"]
    trained_modules: list[str] = _UP_TO_2_0_0["trained_modules"]
    use_dora: list[bool] = _UP_TO_2_0_0["use_dora"]

    @property
    def knows_copies(self) -> bool:
        """Whether copies of checkpoints are known, by others or with a vision tower; versions up to 2.0.0 know none."""
        return self.objective != _UP_TO_2_0_0["objective"]

    @property
    def vision_language(self) -> dict[str, Tower]:
        """The checkpoints of these models with a frozen vision tower; versions up to 2.0.0 know none."""
        if self.objective == _UP_TO_2_0_0["objective"]:  # as knows_copies, without another call for each job
            return {}
        return {name: tower for name, tower in towers().items() if tower.language_model in self.models}

    @property
    def settings(self) -> dict[str, list[Any]]:
        """The settings of a stack of which versions know different values, each with the values of this version."""
        return {name: getattr(self, name) for name in _UP_TO_2_0_0}

    @model_serializer(mode="wrap")
    def _as_on_cards(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit the settings of versions up to 2.0.0, as their cards do."""
        fields: dict[str, Any] = serialize(self)
        return {name: value for name, value in fields.items() if value != _UP_TO_2_0_0.get(name)}


class Card(_Typed):
    """The description of a version: domain, decision rule, libraries, digests of its files, and evaluation."""

    version: str
    created: str = ""  # the date of a released version
    domain: Domain
    threshold: float  # a job counts as fitting if the predicted probability is at least this
    reserve: Reserve | None = None  # safety margin, learned from real runs; None: the predictor learned it
    least_headroom_gib: float | None = None  # nothing fits below it; None: the predictor alone decides, as before 2.1
    fragmentation: Fragmentation | None = None  # learned from replays; absent up to 2.0.0, as is the next field
    outside_pytorch: OutsidePyTorch | None = None
    cluster_speed: ClusterSpeed | None = None  # of a user version that has learned from measured throughput
    rules: int = 0  # by which memory is composed (memory.ways.RULES); absent from the cards of versions up to 2.0.0
    libraries: dict[str, str]
    files: dict[str, str]  # path in the version's folder -> SHA-256
    base: dict[str, str] = {}  # path next to that folder -> SHA-256: moments of another version, which it continues
    evaluation: dict[str, Any] = {}
    made_from: dict[str, str] = {}  # of a user version: each file that it was made from -> SHA-256


RELEASED_AGAIN = "reinstall autoconf-gpus"  # the remedy for a damaged released version


def read_card(folder: Path, sha256: str, remedy: str = RELEASED_AGAIN) -> Card:
    """Read the card of a version and check its digest.

    Args:
        folder: folder of the version.
        sha256: expected digest of the card.
        remedy: advice to the user if the digest differs.

    Raises:
        AutoConfError: the card is missing, altered or invalid.
    """
    try:
        content = read_file(folder / CARD)
        if digest(content) != sha256:
            raise AutoConfError(f"version {folder.name}: {CARD} was altered (in {folder}); {remedy}")
        return Card.model_validate_json(content)
    except (OSError, ValidationError) as error:
        raise AutoConfError(f"version {folder.name}: cannot read {CARD}: {error}") from error


class VersionFiles(NamedTuple):
    """The verified files of a version: its card, every other file by path, and the files of its base by path."""

    card: Card
    files: dict[str, bytes]
    base: dict[str, bytes]


def read_version(folder: Path, sha256: str, remedy: str = RELEASED_AGAIN) -> VersionFiles:
    """Read all files of a version, and verify them given only the digest of its card.

    Args:
        folder: folder of the version.
        sha256: expected digest of the card.
        remedy: advice to the user if a file differs.

    Raises:
        AutoConfError: a file is missing, altered, extra, a link or not a regular file; the message names it.
    """
    card = read_card(folder, sha256, remedy)
    what = f"version {card.version}"
    files = read_files(folder, card.files, what, remedy, also=CARD)
    return VersionFiles(card, files, read_named(folder.parent, card.base, what, remedy))


def verified_card(folder: Path, sha256: str, remedy: str = RELEASED_AGAIN) -> Card:
    """The card of a version after all of its files are verified; arguments and errors as in ``read_version``."""
    return read_version(folder, sha256, remedy).card


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, except of the card, which stores these digests."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != CARD)
    return {p.relative_to(folder).as_posix(): digest(p.read_bytes()) for p in files}
