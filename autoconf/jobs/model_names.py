"""Find models by name, or by the shapes in a checkpoint's ``config.json``; never guess."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from autoconf.errors import BadInput
from autoconf.files import cannot_read
from autoconf.jobs import model_config, vision_language
from autoconf.jobs.names import Names, listed, words

_SIZE = re.compile(r"\d+(\.\d+)?[bm]")
_MOST_DIFFERENCES = 3  # that a refusal names
# Its checkpoints with the name of another are copies of it (unsloth at 015bdef, unsloth/models/mapper.py), but those of
# Phi have other modules: q_proj, k_proj and v_proj (unslothai/notebooks, nb/Phi_4-Conversational.ipynb).
_COPIES, _NO_COPIES = "unsloth", "phi"


class _Recognized(NamedTuple):
    """The model that a config was recognized as, with a note; or no model, with the reason.

    Attributes:
        model: the model with the same shapes.
        message: the note, or the reason.
        file: the config, if no model has its shapes and it can be traced as far as the config itself shows it.
    """

    model: str | None
    message: str
    file: Path | None = None


class ModelNames(Names):
    """The models of a version's domain.

    >>> models = ModelNames({"qwen2.5-7b": ["Qwen/Qwen2.5-7B-Instruct"]})
    >>> models.find("qwen2.5-7b-instruct"), models.find("acme/Qwen2.5-7B-Instruct")
    ('qwen2.5-7b', None)
    >>> models.refusal("acme/Qwen2.5-7B-Instruct", "2.0.0")  # doctest: +ELLIPSIS
    "model_name 'acme/Qwen2.5-7B-Instruct' is not in ... version 2.0.0. It ends like qwen2.5-7b: if it has the same ..."

    Args:
        aliases: each model with its other names.
        copies: whether copies that unsloth publishes have the name of their model.
    """

    def __init__(self, aliases: Mapping[str, Iterable[str]], copies: bool = False) -> None:
        super().__init__(aliases, field="model_name", families=True)
        self._copies = copies
        self._words = {name: [words(spelling) for spelling in found] for name, found in self._spellings.items()}
        # A file may change while a process runs, and a table may name one file a million times. The time of change is
        # part of the key.
        self._recognized = lru_cache(maxsize=1024)(self._recognize)

    def find(self, name: str) -> str | None:
        """The model that a name, a folder or a ``config.json`` refers to; ``None`` if no or several models match."""
        return super().find(name) or self._of_file(name).model or self._copied(name)

    def unmatched_config(self, name: str) -> Path | None:
        """The config that a name leads to, if it describes a model whose shapes no model of the domain has."""
        return None if super().find(name) is not None else self._of_file(name).file

    def note(self, name: str) -> str:
        """A note about how a model was recognized, and what of its checkpoint it is; or empty text."""
        if (named := super().find(name)) is not None:
            return vision_language.note(named)
        found = self._of_file(name)
        if found.model is None and (copied := self._copied(name)) is not None:
            found = _Recognized(copied, f"model_name {name!r} was taken for {copied}, of which it is a copy")
        return "; ".join(filter(None, [found.message, vision_language.note(found.model)])) if found.model else ""

    def _copied(self, name: str) -> str | None:
        """The model of which a checkpoint of unsloth is a copy."""
        organization, _, last = name.partition("/")
        if not self._copies or organization.casefold() != _COPIES:
            return None
        found = super().find(last)
        return None if found is None or words(found)[0] == _NO_COPIES else found

    def refusal(self, name: str, version: str) -> str:
        """The reason why a name is not accepted, and the way out."""
        if problem := self._of_file(name).message:
            return f"model_name {name!r}: {problem}"
        if problem := vision_language.refusal(name, self._spellings):
            return f"model_name {name!r} is not in the domain of version {version}: {problem}"
        like, how = self._like(name)
        if like is None:
            path = model_config.without_config(name)
            return f"{super().refusal(name, version)}{f'; {path}' if path else ''}"
        return (
            f"model_name {name!r} is not in the domain of version {version}. It {how} {like}: if it has the same "
            f"shapes, give --model-name {like}, or the folder of its config.json; ado-autoconf trace adds other models"
        )

    def _like(self, name: str) -> tuple[str | None, str]:
        """The model whose name is part of an unknown name, and the verb for a message: which part it is."""
        last = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
        if (found := super().find(last)) is not None:
            return found, "ends like"
        given = words(last)
        parts = [
            (len(known), model)
            for model, spellings in self._words.items()
            for known in spellings
            if _within(known, given) and _sizes(known) == _sizes(given) != []
        ]
        return (max(parts)[1], "contains the name") if parts else (None, "")

    def _of_file(self, name: str) -> _Recognized:
        file = model_config.config_file(name)
        if file is None:
            return _Recognized(None, "")
        try:
            state = file.stat()
        except OSError as error:
            return _Recognized(None, str(cannot_read(file, error)))
        return self._recognized(file, name, state.st_mtime_ns, state.st_size)

    def _recognize(self, file: Path, name: str, *_: int) -> _Recognized:
        try:
            config = model_config.read_config(file)
        except BadInput as error:
            return _Recognized(None, str(error))
        if problem := model_config.obstacle(config):
            language = model_config.same_shapes(model_config.language_model(config), self._spellings)
            nearest = f"; {vision_language.without_tower(self._likeliest(language))}" if language else ""
            return _Recognized(None, f"{file}: {problem}{nearest}")
        same = model_config.same_shapes(config, self._spellings)
        quantized = model_config.quantized(config)
        if quantized and not same:
            return _Recognized(
                None,
                f"{file}: {quantized}: the checkpoint is already quantized; give the config of the one that it was "
                f"made from{_adapters_over(config)}",
            )
        if not same:
            return _Recognized(None, f"{file}: {self._differs(config)}", file)
        model = self._likeliest(same, model_config.hub_name(config), Path(name).name)
        if quantized:
            return _Recognized(
                None,
                f"{file}: {quantized}: the checkpoint is already quantized; its shapes are those of {model}: give "
                f"--model-name {model} for the one that it was made from{_adapters_over(config)}",
            )
        others = [other for other in same if other != model]
        also = f", which {listed(others)} {'has' if len(others) == 1 else 'have'} too" if others else ""
        own_code = ", without the code that comes with it (auto_map)" if "auto_map" in config else ""
        return _Recognized(model, f"model_name {name!r} was taken for {model} by the shapes in {file}{also}{own_code}")

    def _likeliest(self, same: list[str], *hints: str) -> str:
        """Of models with the same shapes, the one that a hint names, or else the one with the most names."""
        named = [super(ModelNames, self).find(hint) for hint in hints if hint]
        return next((model for model in named if model in same), max(same, key=lambda one: len(self._spellings[one])))

    def _differs(self, config: Mapping[str, Any]) -> str:
        trace = "ado-autoconf trace adds it to your own version"
        nearest = model_config.nearest(config, self._spellings)
        if nearest is None:
            return f"no model of this version has model_type {config['model_type']!r}; {trace}"
        model, differences = nearest
        more = len(differences) - _MOST_DIFFERENCES
        named = [*map(str, differences[:_MOST_DIFFERENCES]), *([f"{more} more settings differ"] if more > 0 else [])]
        return f"no model of this version has its shapes ({model} comes nearest: {listed(named)}); {trace}"


def _adapters_over(config: Mapping[str, Any]) -> str:
    """How to ask for adapters over a quantized checkpoint as it is, if its memory is known."""
    kind = model_config.quantization(config)
    ways = f", and for adapters over it --method qlora and --quantization {kind} as well (from version 3.0.0)"
    return ways if kind else ""


def _within(part: list[str], whole: list[str]) -> bool:
    """Whether words occur in another list of words, one after another."""
    return bool(part) and any(whole[start : start + len(part)] == part for start in range(len(whole) - len(part) + 1))


def _sizes(name: list[str]) -> list[str]:
    return [word for word in name if _SIZE.fullmatch(word)]
