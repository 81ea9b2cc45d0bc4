"""The conditions of a bash script that certainly hold, or certainly do not."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from autoconf.jobs.importers.expansion import Expander
from autoconf.jobs.importers.words import is_unknown, unknown

_WITHOUT_ARGUMENTS = "the script is run without arguments ($@ is empty)"
_NUMBERS: Mapping[str, Callable[[int, int], bool]] = {
    "-eq": lambda a, b: a == b, "-ne": lambda a, b: a != b, "-lt": lambda a, b: a < b,
    "-le": lambda a, b: a <= b, "-gt": lambda a, b: a > b, "-ge": lambda a, b: a >= b,
}  # fmt: skip
_ENDS = re.compile(r"\b(exit|return|usage|shift)\b")


def holds(test: Any, words: Expander, body: str) -> bool | None:
    """Whether a condition holds; ``None`` if that is not known before the script runs.

    An argument that is not given is empty, as where a script has defaults for its arguments. A script that trains does
    not end before, so a condition that would end it, as after a message about its usage, is left open.

    Args:
        test: The node of the condition.
        words: The variables.
        body: The text of what runs if it holds.
    """
    if test.type != "test_command" or re.search(r"&&|\|\|| -[ao] |\$[#@*]", words.raw(test)) or _ENDS.search(body):
        return None
    inside = [child for child in test.children if child.type not in ("[", "]", "[[", "]]")]
    if len(inside) != 1:
        return None
    expected = True
    node = inside[0]
    while node.type == "unary_expression" and node.children[0].type == "!":
        expected, node = not expected, node.children[-1]
    found, assumed = _value(node, words, is_pattern=test.children[0].type == "[[")
    if found is not None and assumed:
        words.assumed.setdefault(_WITHOUT_ARGUMENTS)
    return None if found is None else found is expected


def _value(node: Any, words: Expander, is_pattern: bool) -> tuple[bool | None, bool]:
    """Whether an expression holds, and whether that takes an argument as not given."""
    if node.type == "unary_expression" and len(node.children) == 2:
        operator, operand = words.raw(node.children[0]), node.children[1]
        text, assumed = _text(operand, words)
        if text is None or operator not in ("-z", "-n"):
            return None, False
        return (not text) is (operator == "-z"), assumed
    if node.type != "binary_expression" or len(node.children) != 3:
        return None, False
    first, sign, second = node.children
    is_negated = first.type == "unary_expression" and first.children[0].type == "!"  # so the grammar reads ! $A = b
    left, right = _text(first.children[-1] if is_negated else first, words), _text(second, words)
    if left[0] is None or right[0] is None:
        return None, False
    is_quoted = second.type in ("string", "raw_string")
    found = _compared(left[0], words.raw(sign), right[0], is_pattern and not is_quoted)
    return (found if found is None or not is_negated else not found), left[1] or right[1]


def _compared(left: str, operator: str, right: str, is_pattern: bool) -> bool | None:
    if operator in ("=", "==", "!="):
        same = fnmatchcase(left, right) if is_pattern else left == right
        return same is (operator != "!=")
    numbers = [int(side) for side in (left, right) if re.fullmatch(r"-?\d{1,9}", side)]
    return _NUMBERS[operator](*numbers) if operator in _NUMBERS and len(numbers) == 2 else None


def _text(node: Any, words: Expander) -> tuple[str | None, bool]:
    """The text of a word; ``None`` if it is not known; and whether it is an argument that is not given."""
    pieces: Sequence[str] = [piece[0] if piece else " " for piece in words.pieces(node)]
    text = "".join(pieces)
    if not is_unknown(text):
        return text, False
    is_argument = any(text == unknown(f"${number}", "not set in the file") for number in range(1, 10))
    return ("", True) if is_argument else (None, False)
