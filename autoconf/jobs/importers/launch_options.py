"""The options of a command as settings, as argparse and Hydra take them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from autoconf.errors import BadInput
from autoconf.jobs.importers.key_table import Dialect, Place, Setting, job_keys, settings
from autoconf.jobs.importers.words import is_unknown

# What is abbreviated has a name that a script's own options do not start with.
_ABBREVIATED = (
    "model_name_or_path", "per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing",
    "attn_implementation", "activation_offloading", "lora_target_modules", "max_seq_length", "use_liger_kernel",
)  # fmt: skip
_SHORTEST = 8
ASSIGNMENT_OF_KEY = re.compile(r"\+{0,2}[A-Za-z_][\w.]*=")
CONFIG_SUFFIXES = (".yaml", ".yml", ".json")
PlaceOf = Callable[[str], Place]


def options_of(words: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Options of a script, each with none, one or several values, as argparse takes them: the last of a name counts.

    ``key=value`` is an option as well: it overrides a config in Hydra, OmegaConf and LLaMA-Factory.
    """
    found: dict[str, tuple[str, Any]] = {}
    i = 0
    while i < len(words):
        name, equals, value = words[i].partition("=")
        i += 1
        if not is_option(name) and not ASSIGNMENT_OF_KEY.match(words[i - 1]):
            if is_unknown(name) and not equals and not name.endswith(CONFIG_SUFFIXES):
                found[f"{name} {i}"] = (name, True)
            continue  # a word that is not an option, such as a configuration's path
        values = [value] if equals else []
        while not equals and i < len(words) and not is_option(words[i]) and not ASSIGNMENT_OF_KEY.match(words[i]):
            values.append(words[i])
            i += 1
        found.pop(key_of(name), None)
        found[key_of(name)] = (name, True if not values else values[0] if len(values) == 1 else values)
    return iter(found.values())


def is_option(word: str) -> bool:
    return re.match(r"--?[A-Za-z]", word) is not None


def key_of(name: str) -> str:
    return name.lstrip("-+").replace("-", "_")


def _full_name(key: str, dialect: Dialect, known_parser: bool) -> str:
    """The option of the Trainer that a name abbreviates, as argparse takes it if no other starts like it.

    Args:
        key: The name.
        dialect: The options.
        known_parser: Whether the script has no other options than these.
    """
    if dialect.knows(key) or is_unknown(key) or (not known_parser and len(key) < _SHORTEST):
        return key
    found = [name for name in (*dialect.keys, *dialect.ignored) if name.startswith(key)]
    meanings = [dialect.find(name) for name in found]
    if not found or (len(found) > 1 and (meanings[0] is None or any(each != meanings[0] for each in meanings))):
        return key
    return found[0] if known_parser or found[0] in _ABBREVIATED else key


def option_settings(
    options: Iterable[tuple[str, Any]], dialect: str, place: PlaceOf, known_parser: bool = False
) -> Iterator[Setting]:
    table = job_keys().dialects[dialect]
    for name, value in options:
        key, where = key_of(name), place(name)
        if key.startswith("no_") and table.find(key) is None and table.find(key[3:]):
            key, value = key[3:], False  # as transformers' HfArgumentParser writes a flag that is on by default
        if isinstance(value, str) and value.startswith("{") and not is_unknown(value):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise BadInput(f"{where}: {value[:80]!r}: not JSON") from None
        if dialect == "arguments":
            key = _full_name(key, table, known_parser)
        yield from (setting._replace(place=where) for setting in settings(dialect, {key: value}, place))
