"""Names as people write them: found whatever their case, separators and vendor, and what to say of an unknown one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

_VENDOR = "nvidia"  # which Kubernetes writes before a GPU's name, and people leave out
_SEPARATORS = re.compile(r"[\s_-]+")
_WORDS = re.compile(r"[a-z]+|\d+(?:\.\d+)*[a-z]*")


def key(name: str) -> str:
    """What is left of a name without case, vendor and separators; names with the same key are the same name.

    Between two digits a separator stays: "3-8b" is no "38b".

    >>> key("NVIDIA A100-SXM4_80gb") == key("nvidia-a100-sxm4-80GB") == key("A100 SXM4 80GB")
    True
    >>> key("llama 3.1 8B"), key("granite-3-8b"), key("granite-38b")
    ('llama3.1-8b', 'granite3-8b', 'granite38b')
    """
    text = _SEPARATORS.sub("-", name.strip().casefold()).removeprefix(f"{_VENDOR}-")
    return re.sub(r"(?<!\d)-|-(?!\d)", "", text)


def words(name: str) -> list[str]:
    """The parts that tell a name from others; a number keeps its unit.

    >>> words("meta-llama/Llama-3.1-8B"), words("NVIDIA-A100-SXM4-80GB")
    (['llama', '3.1', '8b'], ['a', '100', 'sxm', '4', '80gb'])
    """
    found = _WORDS.findall(_without_organisation(name).casefold())
    return [word for word in found if word != _VENDOR]


def _without_organisation(name: str) -> str:
    """A Hugging Face id without whose it is."""
    return name.rpartition("/")[2]


def families(names: Iterable[str]) -> dict[str, list[str]]:
    """Names by their first words.

    >>> families(["llama-7b", "llama3-8b", "granite-3-8b"])
    {'llama': ['llama-7b', 'llama3-8b'], 'granite': ['granite-3-8b']}
    """
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(words(name)[0], []).append(name)
    return found


def listed(items: Iterable[str], conjunction: str = "and") -> str:
    """Items as a sentence lists them.

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
        aliases: each name with the others that it goes by.
        field: what is named so.
        families: whether the names fall into families, told by their first words; then only those of the same family
            are listed instead of an unknown one.
    """

    def __init__(self, aliases: Mapping[str, Iterable[str]], *, field: str = "name", families: bool = False) -> None:
        self.field = field
        self._spellings = {name: [name, *others] for name, others in aliases.items()}
        # The names and aliases as they are written in the domain, with the name of each.
        self.exact = {spelling: name for name, spellings in self._spellings.items() for spelling in spellings}
        self._by_key: dict[str, set[str]] = {}
        for spelling, name in self.exact.items():
            for form in (spelling, _without_organisation(spelling)):
                self._by_key.setdefault(key(form), set()).add(name)
        self._families = families
        # A table may ask for one unknown name a million times.
        self.known_like = lru_cache(maxsize=1024)(self._known_like)

    def find(self, name: str) -> str | None:
        """The domain's name for what somebody wrote; ``None`` if there is none, or more than one."""
        if name in self.exact:
            return self.exact[name]
        found = self._by_key.get(key(name), ())
        return next(iter(found)) if len(found) == 1 else None

    def note(self, name: str) -> str:
        """What a name was taken for where that is worth saying; empty text otherwise."""
        return ""

    def refusal(self, name: str, version: str) -> str:
        """Why a version does not take a name, and what it has instead."""
        return f"{self.field} {name!r} is not in the domain of version {version}, which has {self.known_like(name)}"

    def _known_like(self, name: str) -> str:
        """What the domain has in place of an unknown name: those that say all that it says and more; otherwise all, or
        all of its family. Nothing is picked out that says something else: another size is no suggestion."""
        said = words(name)
        same = [known for known in self._spellings if self._says(known, said)] if said else []
        if same or not self._families:
            return listed(same or self._spellings)
        found = families(self._spellings)
        for word in said:
            if word in found:
                return f"the {word} models {listed(found[word])}"
        return f"{listed(found)} models only"

    def _says(self, known: str, said: list[str]) -> bool:
        return any(set(said) <= set(words(spelling)) for spelling in self._spellings[known])
