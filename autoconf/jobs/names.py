"""Look up names regardless of case, separators and vendor, and suggest names for an unknown one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

_VENDOR = "nvidia"  # Kubernetes writes it before the name of a GPU, people leave it out
_SEPARATORS = re.compile(r"[\s_-]+")
_WORDS = re.compile(r"[a-z]+|\d+(?:\.\d+)*[a-z]*")


def key(name: str) -> str:
    """Reduce a name to a key without case, vendor and separators. Names with the same key are the same name.

    A separator between two digits is kept: "3-8b" is not "38b".

    >>> key("NVIDIA A100-SXM4_80gb") == key("nvidia-a100-sxm4-80GB") == key("A100 SXM4 80GB")
    True
    >>> key("llama 3.1 8B"), key("granite-3-8b"), key("granite-38b")
    ('llama3.1-8b', 'granite3-8b', 'granite38b')
    """
    text = _SEPARATORS.sub("-", name.strip().casefold()).removeprefix(f"{_VENDOR}-")
    return re.sub(r"(?<!\d)-|-(?!\d)", "", text)


def words(name: str) -> list[str]:
    """Split a name into the words that distinguish it from others; a number keeps its unit.

    >>> words("meta-llama/Llama-3.1-8B"), words("NVIDIA-A100-SXM4-80GB")
    (['llama', '3.1', '8b'], ['a', '100', 'sxm', '4', '80gb'])
    """
    found = _WORDS.findall(_without_organization(name).casefold())
    return [word for word in found if word != _VENDOR]


def _without_organization(name: str) -> str:
    """A Hugging Face id without its organization."""
    return name.rpartition("/")[2]


def families(names: Iterable[str]) -> dict[str, list[str]]:
    """Group names by their first words.

    >>> families(["llama-7b", "llama3-8b", "granite-3-8b"])
    {'llama': ['llama-7b', 'llama3-8b'], 'granite': ['granite-3-8b']}
    """
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(words(name)[0], []).append(name)
    return found


def listed(items: Iterable[str], conjunction: str = "and") -> str:
    """Join items as an English sentence lists them.

    >>> listed(["full"]), listed(["full", "lora", "qlora"]), listed(["full", "lora"], "or")
    ('full', 'full, lora and qlora', 'full or lora')
    """
    *most, last = items
    return f"{', '.join(most)} {conjunction} {last}" if most else last


class Names:
    """The names of one field in a version's domain.

    >>> gpus = Names({"NVIDIA-A100-SXM4-80GB": [], "NVIDIA-A100-80GB-PCIe": [], "L40S": ["NVIDIA-L40S"]})
    >>> gpus.find("nvidia l40s"), gpus.find("A100")
    ('L40S', None)
    >>> gpus.known_like("A100")
    'NVIDIA-A100-SXM4-80GB and NVIDIA-A100-80GB-PCIe'
    >>> gpus.known_like("NVIDIA A100-SXM4-40GB")
    'NVIDIA-A100-SXM4-80GB, NVIDIA-A100-80GB-PCIe and L40S'

    Args:
        aliases: each name with its other spellings.
        field: the field that holds such names.
        families: whether names with the same first word form a family. If so, only the family of an unknown name is
            listed as its alternatives.
    """

    def __init__(self, aliases: Mapping[str, Iterable[str]], *, field: str = "name", families: bool = False) -> None:
        self.field = field
        self._spellings = {name: [name, *others] for name, others in aliases.items()}
        # Names and aliases in the domain's spelling, each with its name.
        self.exact = {spelling: name for name, spellings in self._spellings.items() for spelling in spellings}
        self._by_key: dict[str, set[str]] = {}
        for spelling, name in self.exact.items():
            for form in (spelling, _without_organization(spelling)):
                self._by_key.setdefault(key(form), set()).add(name)
        self._families = families
        # A table may look up one unknown name a million times.
        self.known_like = lru_cache(maxsize=1024)(self._known_like)

    def find(self, name: str) -> str | None:
        """The domain's name for a spelling; ``None`` if no name or several names match."""
        if name in self.exact:
            return self.exact[name]
        found = self._by_key.get(key(name), ())
        return next(iter(found)) if len(found) == 1 else None

    def note(self, name: str) -> str:
        """A note about the name that a spelling was taken for; empty text if none is needed."""
        return ""

    def refusal(self, name: str, version: str) -> str:
        """The reason why a version does not accept a name, and the names that it has."""
        return f"{self.field} {name!r} is not in the domain of version {version}, which has {self.known_like(name)}"

    def _known_like(self, name: str) -> str:
        """The domain's alternatives to an unknown name: names with all of its words, or else its family or all names.

        A name that differs in a word is never picked out: another size is not a suggestion.
        """
        given = words(name)
        same = [known for known in self._spellings if self._has_words(known, given)] if given else []
        if same or not self._families:
            return listed(same or self._spellings)
        found = families(self._spellings)
        for word in given:
            if word in found:
                return f"the {word} models {listed(found[word])}"
        return f"{listed(found)} models only"

    def _has_words(self, known: str, given: list[str]) -> bool:
        return any(set(given) <= set(words(spelling)) for spelling in self._spellings[known])
