"""Tables in the versions' README that commands write, each between two markers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table of rows that have the same keys.

    >>> print(markdown([{"GPU": "L40S", "GiB": 44.4}]))
    | GPU | GiB |
    | --- | --- |
    | L40S | 44.4 |
    """
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join("" if cell is None else str(cell) for cell in line) + " |" for line in lines)


def write_section(readme: Path, what: str, command: str, section: str) -> None:
    """Replace what stands between the markers of a section.

    Raises:
        ValueError: the file has no such markers.
    """
    start, end = f"<!-- {what}: written by {command} -->", f"<!-- end of {what} -->"
    text = readme.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"{readme} has no markers for the {what}")
    readme.write_text(pattern.sub(lambda _: f"{start}\n\n{section}\n\n{end}", text), encoding="utf-8")
