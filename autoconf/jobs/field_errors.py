"""Sentences on fields of a job that are missing, unknown or invalid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

_MOST_NAMED = 5  # unknown fields in a message


def no_such(unknown: Sequence[str], fields: Iterable[str]) -> str:
    """A sentence on fields that do not exist.

    Args:
        unknown: their names.
        fields: the names of those that exist.

    >>> no_such([f"x{number}" for number in range(2_000)], ["method"])
    'x0, x1, x2, x3, x4 and 1,995 others: no such field; the fields are method'
    """
    more = len(unknown) - _MOST_NAMED
    named = [ascii(field[:80])[1:-1] for field in unknown[:_MOST_NAMED]]
    others = f" and {more:,} others" if more > 0 else ""
    return f"{', '.join(named)}{others}: no such field; the fields are {', '.join(fields)}"


def sentence(detail: Any, fields: Iterable[str]) -> str:
    """One of pydantic's errors as a sentence; our own validators' messages already name the field."""
    field = ".".join(map(str, detail["loc"]))
    match detail["type"]:
        case "missing":
            return f"{field}: is required"
        case "extra_forbidden":
            return no_such([field], fields)
        case "value_error":
            return str(detail["ctx"]["error"])
        case _:
            return f"{field}: {detail['msg']}"
