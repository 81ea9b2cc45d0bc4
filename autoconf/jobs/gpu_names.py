"""Find GPU types by the names that people use. A name that fits several types is refused."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache

from autoconf.jobs.names import Names, key, listed

# The memory sizes, in GB, of GPUs on the market. CUDA reports less, and no other size lies between the two.
_SOLD_GB = (8, 10, 11, 12, 16, 24, 32, 40, 48, 64, 80, 94, 96, 141, 180, 192, 288)
_MEMORY = re.compile(r"(?<![a-z0-9.])(\d+)[\s_-]*(?:gib|gb|g)(?![a-z0-9])")
_SIZE = re.compile(r"\d+gb")
_PCI_EXPRESS = re.compile(r"pci[\s_-]*e(?![a-z])")
# Words that may be joined to the name of a chip: a brand before it, a board or a generation after it.
_BRANDS = "nvidia|tesla|geforce|quadro|rtx|gtx"
_BOARDS = r"sxm\d*|pcie|nvl|hbm\d+e?|ada"
_BOARD = re.compile(r"sxm\d*|pcie")
_WORD = re.compile(rf"{_BRANDS}|{_BOARDS}|[a-z]*\d+[a-z]*?(?=(?:{_BOARDS})|[^a-z0-9]|$)|[a-z]+|\d+")
_NAMES_NO_TYPE = frozenset({"nvidia", "gpu"})
_VARIANTS = frozenset({"ti", "super"})  # larger types of the same number, which nobody calls by the number alone
_CONSUMER = frozenset({"geforce", "rtx"})  # separate brands; every other type may be called a Tesla
# Names in files of clouds and clusters that fit several types: the SXM boards, which most of those nodes have.
_USUAL = {
    "H100": "NVIDIA-H100-80GB-HBM3",
    "H100-80GB": "NVIDIA-H100-80GB-HBM3",
    "A100-80GB": "NVIDIA-A100-SXM4-80GB",
    "A100-40GB": "NVIDIA-A100-SXM4-40GB",
}


class GpuNames(Names):
    """The GPU types of a version's domain.

    A name matches a type if it is the type's name or alias in any spelling, or if all words of the name are true of
    that type and of no other type. ``H100``, and ``A100`` or ``H100`` with a size, mean the SXM board.

    >>> gpus = GpuNames({"NVIDIA-A100-SXM4-80GB": 79.15, "NVIDIA-A100-SXM4-40GB": 39.4, "Tesla-V100-SXM2-32GB": 31.7,
    ...                  "NVIDIA-GeForce-RTX-4090": 23.5, "NVIDIA-L4": 22.0})
    >>> gpus.find("v100"), gpus.find("RTX4090 24 GB"), gpus.find("a100-80g"), gpus.find("Tesla V100 32GB")
    ('Tesla-V100-SXM2-32GB', 'NVIDIA-GeForce-RTX-4090', 'NVIDIA-A100-SXM4-80GB', 'Tesla-V100-SXM2-32GB')
    >>> gpus.find("A100"), gpus.fitting("A100")
    (None, ['NVIDIA-A100-SXM4-80GB', 'NVIDIA-A100-SXM4-40GB'])
    >>> gpus.find("L40"), gpus.find("V100 16GB"), gpus.find("RTX 4090 Laptop"), gpus.find("L4 PCIe")
    (None, None, None, 'NVIDIA-L4')

    Args:
        usable_gib: each type with the memory that CUDA reports, in GiB.
        aliases: the other names of some types.
    """

    def __init__(self, usable_gib: Mapping[str, float], aliases: Mapping[str, Iterable[str]] | None = None) -> None:
        super().__init__({name: (aliases or {}).get(name, ()) for name in usable_gib}, field="gpu_model")
        self._types = {
            name: {sold_with(usable), *(word for spelling in self._spellings[name] for word in gpu_words(spelling))}
            for name, usable in usable_gib.items()
        }
        self._by_words: dict[frozenset[str], set[str]] = {}
        for spelling, name in self.exact.items():
            self._by_words.setdefault(_distinguishing(gpu_words(spelling)), set()).add(name)
        if set(_USUAL.values()) <= usable_gib.keys():  # not version 1.1.0, which keeps its answers
            for spelling, name in _USUAL.items():
                self._by_words.setdefault(_distinguishing(gpu_words(spelling)), {name})
        # A table may look up one name a million times.
        self.fitting = lru_cache(maxsize=1024)(self._fitting)
        self._found = lru_cache(maxsize=1024)(self._find)

    def find(self, name: str) -> str | None:
        """The type that a name refers to; ``None`` if no type or several types match."""
        return self._found(name)

    def _find(self, name: str) -> str | None:
        words = gpu_words(name)
        found = super().find(name) or _only(self._by_words.get(_distinguishing(words), ()))
        if found is not None:
            return found
        fits = _only(self.fitting(name))
        return fits if fits and all(_is_true_of(word, self._types[fits]) for word in words) else None

    def _fitting(self, name: str) -> list[str]:
        """The types that a name may mean: those for which all of its words are true."""
        words = gpu_words(name)
        if not any(_is_chip(word) for word in words):
            return []
        return [
            name
            for name, known in self._types.items()
            if all(_may_be_true_of(word, known) for word in words) and _VARIANTS & known <= {*words}
        ]

    def note(self, name: str) -> str:
        """A note about the type that a name was taken for; empty text if the name is the type's own, or is unknown.

        >>> GpuNames({"Tesla-V100-SXM2-32GB": 31.7}).note("v100")
        "gpu_model 'v100' was taken for Tesla-V100-SXM2-32GB"
        """
        found = self.find(name)
        if found is None or key(name) == key(found):
            return ""
        others = [known for known in self.fitting(name) if known != found]
        also = f", and also fits {listed(others)}" if others else ""
        return f"gpu_model {name!r} was taken for {found}{also}"

    def refusal(self, name: str, version: str) -> str:
        """The reason why a version does not accept a name, with the types that the name fits, or all types."""
        fits = self.fitting(name)
        if len(fits) < 2:
            return super().refusal(name, version)
        return f"gpu_model {name!r} fits several GPU types of version {version}; give one of {listed(fits, 'or')}"

    def _known_like(self, name: str) -> str:
        return listed(self.fitting(name) or self._spellings)


def gpu_words(name: str) -> list[str]:
    """Split the name of a GPU into words; memory is in GB.

    >>> gpu_words("NVIDIA A100-SXM4 (80 GB)"), gpu_words("GeForceRTX4090"), gpu_words("V100-32")
    (['nvidia', 'a100', 'sxm4', '80gb'], ['geforce', 'rtx', '4090'], ['v100', '32gb'])
    """
    text = _PCI_EXPRESS.sub("pcie", _MEMORY.sub(r"\1gb", name.casefold()))
    words = [word for part in re.split(r"[\W_]+", text) for word in _WORD.findall(part)]
    return [f"{word}gb" if word in map(str, _SOLD_GB) else word for word in words]


def sold_with(usable_gib: float) -> str:
    """The nominal memory of a GPU, from the memory that CUDA reports.

    >>> sold_with(79.15), sold_with(14.5)
    ('80gb', '16gb')
    """
    return f"{next((size for size in _SOLD_GB if size >= usable_gib), round(usable_gib))}gb"


def _distinguishing(words: Iterable[str]) -> frozenset[str]:
    """The words that distinguish a name from others."""
    kept = frozenset(words) - _NAMES_NO_TYPE
    return kept if kept & _CONSUMER else kept - {"tesla"}


def _is_chip(word: str) -> bool:
    return any(letter.isdecimal() for letter in word) and not _SIZE.fullmatch(word) and not re.fullmatch(_BOARDS, word)


def _is_true_of(word: str, of_type: Collection[str]) -> bool:
    """Whether a word is true of a type."""
    if word == "tesla":
        return not _CONSUMER & set(of_type)
    if word == "sxm":
        return any(known.startswith("sxm") for known in of_type) or _has_no_board(of_type)
    if _BOARD.fullmatch(word):
        return word in of_type or _has_no_board(of_type)
    return word in _NAMES_NO_TYPE or word in of_type


def _has_no_board(of_type: Collection[str]) -> bool:
    """Whether no name of a type contains a board, so that any board is accepted: "H200 SXM", "L40S PCIe"."""
    return not any(word != "ada" and re.fullmatch(_BOARDS, word) for word in of_type)


def _may_be_true_of(word: str, of_type: Collection[str]) -> bool:
    """Whether a word may be true of a type: "6000" is short for an A6000 to some, and for a 6000 Ada to others."""
    if _is_true_of(word, of_type):
        return True
    return word.isdecimal() and any(re.fullmatch(rf"[a-z]+{word}", known) for known in of_type)


def _only(found: Collection[str]) -> str | None:
    return next(iter(found)) if len(found) == 1 else None
