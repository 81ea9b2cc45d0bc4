"""Read which modules have LoRA adapters: a named group, or a list of module names as PEFT's ``target_modules``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, cast, get_args

from autoconf.jobs.names import key
from autoconf.jobs.stack import LoraTargets

GROUPS: tuple[str, ...] = get_args(LoraTargets)
_MODULE = re.compile(r"[A-Za-z_]\w*(\.\w+)*")
_LONGEST = 1_000  # characters of a list; longer ones are not meaningful


def read_targets(field: str, value: Any) -> str:
    """Read the modules with adapters.

    Args:
        field: name for the error message.
        value: a group's name regardless of case and separators, or names of modules: a list, or text with commas or
            spaces between them, with or without brackets and quotes.

    Returns:
        The group, or the names in order of the alphabet, each once, with commas between them.

    Raises:
        ValueError: the value is anything else.

    >>> read_targets("lora_targets", "All linear"), read_targets("lora_targets", ["v_proj", "q_proj"])
    ('all-linear', 'q_proj,v_proj')
    >>> read_targets("lora_targets", ".*_proj")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: lora_targets: must be default, attention, all-linear, or names of modules such as q_proj,v_proj, ...
    """
    names = names_in(value)
    written = names[0] if len(names) == 1 else value
    for group in GROUPS if isinstance(written, str) and len(written) <= _LONGEST else ():
        if key(written) == key(group):
            return group
    if not names or not all(_MODULE.fullmatch(name) for name in names):
        shown = ascii(value)
        raise ValueError(
            f"{field}: must be {', '.join(GROUPS)}, or names of modules such as q_proj,v_proj, got "
            f"{shown if len(shown) <= 80 else f'{shown[:77]}...'}"
        )
    return ",".join(sorted(set(names)))


def names_in(value: Any) -> list[str]:
    """The names of modules in a list, or in text with commas or spaces between them; none in any other value."""
    if isinstance(value, str) and len(value) <= _LONGEST:
        return re.sub(r"[\[\](){}'\",]", " ", value).split()
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | dict):
        items = list(value)
        return [item.strip() for item in items] if all(isinstance(item, str) for item in items) else []
    return []


def as_setting(targets: str) -> tuple[str, ...] | LoraTargets:
    """The value that ``Stack.lora_targets`` has for a text of ``read_targets``.

    >>> as_setting("all-linear"), as_setting("q_proj,v_proj")
    ('all-linear', ('q_proj', 'v_proj'))
    """
    return cast(LoraTargets, targets) if targets in GROUPS else tuple(targets.split(","))
