"""Read which layers have adapters: all, or numbers of layers as PEFT's ``layers_to_transform`` has them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice, pairwise
from typing import Any

ALL = "all"
_MOST = 1_024  # layers of a model, as model_config.py reads them
_LONGEST = 10_000  # characters of a list; longer ones are not meaningful
_PART = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")


def read_layers(field: str, value: Any) -> str:
    """Read the layers that have adapters.

    Args:
        field: name for the error message.
        value: ``all``, a number of a layer from 0 on, a list of them, or text with commas or spaces between numbers and
            ranges, such as ``0-3,8``. An empty list means all, as in PEFT.

    Returns:
        ``all``, or ranges in ascending order with commas between them.

    Raises:
        ValueError: the value is anything else.

    >>> read_layers("lora_layers", [16, 17, 18, 3]), read_layers("lora_layers", "[8, 0-2]"), read_layers("x", 5)
    ('3,16-18', '0-2,8', '5')
    >>> read_layers("lora_layers", [-1])
    Traceback (most recent call last):
    ValueError: lora_layers: must be all, or numbers of layers from 0 to 1023 such as 0-3,8, got [-1]
    """
    if value.strip().casefold() == ALL if isinstance(value, str) else isinstance(value, list | tuple) and not value:
        return ALL
    found = _numbers(value)
    if not found or max(found) >= _MOST:
        shown = ascii(value)
        raise ValueError(
            f"{field}: must be all, or numbers of layers from 0 to {_MOST - 1} such as 0-3,8, got "
            f"{shown if len(shown) <= 80 else f'{shown[:77]}...'}"
        )
    return as_text(found)


def as_text(layers: Iterable[int]) -> str:
    """Numbers of layers as ranges; ``all`` if there are none.

    >>> as_text([0, 1, 2, 5])
    '0-2,5'
    """
    numbers = sorted(set(layers))
    starts = [number for before, number in pairwise([-2, *numbers]) if number != before + 1]
    ends = [number for number, after in pairwise([*numbers, -2]) if after != number + 1]
    return ",".join(f"{a}-{b}" if b > a else str(a) for a, b in zip(starts, ends, strict=True)) or ALL


def as_numbers(text: str) -> tuple[int, ...]:
    """The value that ``Stack.lora_layers`` has for a text of ``read_layers``; nothing for all layers.

    >>> as_numbers("0-2,5"), as_numbers("all")
    ((0, 1, 2, 5), ())
    """
    return () if text == ALL else tuple(sorted(_numbers(text)))


def _numbers(value: Any) -> set[int]:
    """The numbers in a value; none if any part of it is neither a number of a layer nor a range."""
    many = isinstance(value, Iterable) and not isinstance(value, str | bytes | dict)
    text = " ".join(str(item).removesuffix(".0") for item in islice(value if many else [value], _MOST + 1))
    found: set[int] = set()
    for part in re.sub(r"[\[\](),'\"]", " ", text[: _LONGEST + 1]).split():
        match = _PART.fullmatch(part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            return set()
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return found if len(text) <= _LONGEST else set()
