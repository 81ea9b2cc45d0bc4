"""Write generated tables into the documentation, each between two markers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import typer

from autoconf.errors import BadInput

# In a checkout; the documentation is not part of the wheel.
PAGES = Path(__file__).parents[2] / "docs" / "versions"
VALIDATION = PAGES / "validation.md"


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Format rows with the same keys as a Markdown table.

    >>> print(markdown([{"GPU": "L40S", "GiB": 44.4}]))
    | GPU | GiB |
    | --- | --- |
    | L40S | 44.4 |
    """
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join("" if cell is None else str(cell) for cell in line) + " |" for line in lines)


class Named(Protocol):
    """Something with a name."""

    @property
    def name(self) -> str: ...


Item = TypeVar("Item", bound=Named)


def with_words(what: str, items: Iterable[Item], words: Sequence[str] | None) -> list[Item]:
    """Select items whose names have all words, in any case; end a command with exit code 2 if there are none.

    Args:
        what: what the items are, for the message.
        items: the items.
        words: words of their names; all items if there are none.
    """
    chosen = [item for item in items if all(word.lower() in item.name.lower() for word in words or ())]
    if not chosen:
        typer.echo(f"no {what} has {' and '.join(words or ())} in its name", err=True)
        raise typer.Exit(2)
    return chosen


def require_section(readme: Path, what: str, command: str) -> None:
    """Raise unless a file has the markers of a section.

    Raises:
        BadInput: the markers are missing; the message names them.
    """
    if not _pattern(what, command).search(readme.read_text(encoding="utf-8")):
        raise BadInput(
            f"{readme.name} has no section for {what}: it needs the markers {' and '.join(_markers(what, command))}"
        )


def _markers(what: str, command: str) -> tuple[str, str]:
    return f"<!-- {what}: written by {command} -->", f"<!-- end of {what} -->"


def _pattern(what: str, command: str) -> re.Pattern[str]:
    start, end = map(re.escape, _markers(what, command))
    return re.compile(f"{start}.*?{end}", re.DOTALL)


def write_section(readme: Path, what: str, command: str, section: str) -> None:
    """Replace the text between the markers of a section.

    Raises:
        BadInput: the file has no such markers.
    """
    require_section(readme, what, command)
    start, end = _markers(what, command)
    text = readme.read_text(encoding="utf-8")
    text = _pattern(what, command).sub(lambda _: f"{start}\n\n{section}\n\n{end}", text)
    readme.write_text(text, encoding="utf-8")
