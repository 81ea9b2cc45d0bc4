"""Texts of shell scripts with unknown parts, and bash's word splitting."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# An unknown part of a value is kept in the text, between two characters of Unicode's private use area. So splitting and
# joining work as in bash, and the part can be described in a message if it matters.
_START, _END = "\ue000", "\ue001"
_UNKNOWN = re.compile(f"{_START}([^{_START}{_END}]*){_END}")
# Characters that bash would split or expand, replaced within a description, so that it stays one word.
_SIGNS = {ord(sign): chr(0xE100 + ord(sign)) for sign in map(chr, range(0x7F)) if not sign.isalnum() and sign != "_"}
_PLAIN = {ord(hidden): chr(sign) for sign, hidden in _SIGNS.items()}
_LONGEST_SHOWN = 160
LONGEST = 1 << 16  # characters of one value
NEW_WORD = None  # between the items of "${array[@]}"


def cleaned(text: str) -> str:
    """Text without the characters that mark an unknown part."""
    return re.sub(r"[\ue000-\ue1ff]", "?", text)


def unknown(name: str, why: str) -> str:
    """The text of an unknown value.

    >>> described(unknown("$BS", "4 or 1") + "x")
    '$BS (4 or 1)x'
    """
    text = described(f"{name} ({why})" if why else name)
    return f"{_START}{text.translate(_SIGNS)}{_END}"


def is_unknown(text: object) -> bool:
    """Whether a part of a value is unknown."""
    return isinstance(text, str) and _START in text


def described(text: str) -> str:
    """The value for a message: in one line, shortened."""
    plain = _UNKNOWN.sub(r"\1", text).replace(_START, "").replace(_END, "").translate(_PLAIN)
    printable = "".join(c if c.isprintable() else " " for c in plain[: 2 * _LONGEST_SHOWN])
    return printable if len(plain) <= _LONGEST_SHOWN else f"{printable[:_LONGEST_SHOWN]}..."


def joined(name: str, values: Iterable[str | None]) -> str | None:
    """The value of a variable that may have several values; ``None`` means not set.

    >>> joined("BS", ["4", "4"]), described(joined("BS", ["4", "1", None]))
    ('4', '$BS (4 or 1 or not set)')
    """
    different = list(dict.fromkeys(values))
    if len(different) == 1:
        return different[0]
    shown = ["not set" if value is None else described(value)[:60] or "empty" for value in different[:6]]
    return unknown(f"${name}", " or ".join(shown))


def limited(name: str, text: str) -> str:
    """The value, or an unknown value if it is too long."""
    return text if len(text) <= LONGEST else unknown(f"${name}", f"longer than {LONGEST:,} characters")


Piece = tuple[str, bool] | None  # a text and whether it is split, or the start of a new word


def fields(pieces: Iterable[Piece]) -> list[str]:
    """Split expanded text into words: unquoted parts are split at white space.

    >>> fields([("--a=", False), ("1 2", True), ("", False), NEW_WORD, ("b c", False)])
    ['--a=1', '2', 'b c']
    """
    words: list[str] = []
    current: str | None = None
    for piece in pieces:
        parts = [piece[0]] if piece and not piece[1] else re.split(r"[ \t\n]+", piece[0]) if piece else ["", ""]
        for i, part in enumerate(parts):
            if i and current is not None:
                words.append(current)
                current = None
            if part or (piece and not piece[1]):
                current = (current or "") + part
    return words if current is None else [*words, current]


def echoed(words: Sequence[str]) -> str:
    """What ``echo`` writes, without options that change it; empty for another command.

    >>> echoed(["echo", "{}"]), echoed(["echo", "-e", "a"]), echoed(["cat", "a.json"])
    ('{}\\n', '', '')
    """
    return " ".join(words[1:]) + "\n" if words[:1] == ["echo"] and words[1:2] and not words[1].startswith("-") else ""
