"""Expand the words of a bash script as bash does: variables, defaults, arrays, arithmetic, and a few commands."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any

from autoconf.jobs.importers.words import NEW_WORD, Piece, described, fields, is_unknown, joined, limited, unknown

_BRACES = re.compile(
    r"\$\{(?P<length>#(?=\w))?(?P<indirect>!)?(?P<name>\w+|[@*#?$!-])(?:\[(?P<index>[^\]]*)\])?(?P<rest>.*)\}",
    re.DOTALL,
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "'": "'", '"': '"', "\\": "\\"}
_CHANGED = re.compile(r"(?:\+\+|--)\s*([A-Za-z_]\w*)|([A-Za-z_]\w*)\s*(?:\+\+|--|(?:[-+*/%&|^]|<<|>>)?=(?!=))")
_NAMED = re.compile(r"\$\{?(\w+)\}?|\b([A-Za-z_]\w*)\b")
_LIST_ALONE = re.compile(r"\"(?:\$@|\$\{\w+\[@\]\}|\$\{@\})\"")
_BRACED = re.compile(r"(?<![$\\])\{[^{}\s]*(?:,|\.\.)[^{}\s]*\}")
_QUOTED = re.compile(r"'[^']*'|\"(?:\\.|[^\"\\])*\"")
_LEADING = re.compile(r"^(?:\s|\\\n)+")
_LARGEST = 2**63
Value = str | list[str]


class Expander:
    """The variables of a script, and the words that they give.

    Attributes:
        variables: The value of each variable that the script or its environment sets; arrays are lists.
        assumed: A sentence for each default that was taken because a variable is not set.
    """

    def __init__(self, source: bytes, variables: dict[str, Value]) -> None:
        self.source = source
        self.variables = variables
        self.assumed: dict[str, None] = {}

    def raw(self, node: Any) -> str:
        """The text of a node; the parser counts white space before an expansion in quotes to it."""
        text = self.source[node.start_byte : node.end_byte].decode("utf-8", "replace")
        is_expansion = "expansion" in node.type or "substitution" in node.type
        return _LEADING.sub("", text) if is_expansion else text

    def words(self, node: Any) -> list[str]:
        """The words that a node gives."""
        if node.type in ("word", "concatenation", "brace_expression"):
            raw = self.raw(node)
            if _BRACED.search(_QUOTED.sub("", raw)):
                return [unknown(raw[:60], "bash makes several words of the braces; write them out, or quote them")]
        return fields(self.pieces(node))

    def text(self, node: Any) -> str:
        """The value of a node as one text, as in an assignment."""
        return "".join(piece[0] if piece else " " for piece in self.pieces(node))

    def pieces(self, node: Any, quoted: bool = False) -> Iterator[Piece]:
        """The parts of a word, each with whether it is split at white space."""
        match node.type:
            case "raw_string":
                yield self.raw(node)[1:-1], False
            case "ansi_c_string":
                yield re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[0]), self.raw(node)[2:-1]), False
            case "string" | "translated_string":
                if not _LIST_ALONE.fullmatch(self.raw(node)):  # "$@" gives no word where it is empty
                    yield "", False
                start = node.start_byte + (2 if node.type == "translated_string" else 1)
                yield from self.between(node, start, node.end_byte - 1, quoted=True)
            case "concatenation" | "command_name":
                for child in node.children:
                    yield from self.pieces(child, quoted)
            case "simple_expansion":
                yield from self._variable(self.raw(node)[1:], quoted)
            case "expansion":
                yield from self._braces(node, quoted)
            case "arithmetic_expansion":
                yield self._arithmetic(node), False
            case "command_substitution":
                yield self._output(node), not quoted
            case "process_substitution":
                yield unknown(self.raw(node)[:60], "the output of a command"), False
            case _:
                yield re.sub(r"\\(\n|.)", lambda found: "" if found[1] == "\n" else found[1], self.raw(node)), False

    def between(self, node: Any, start: int, end: int, quoted: bool) -> Iterator[Piece]:
        """Literal text with expansions in it."""
        for child in node.children:
            is_expansion = "expansion" in child.type or "substitution" in child.type
            if not is_expansion or child.start_byte < start or child.end_byte > end:
                continue
            before = child.end_byte - len(self.raw(child).encode("utf-8", "surrogateescape"))
            yield from self._unless_empty(start, before)
            yield from self.pieces(child, quoted)
            start = child.end_byte
        yield from self._unless_empty(start, end)

    def _unless_empty(self, start: int, end: int) -> Iterator[Piece]:
        if start < end:
            yield self._literal(start, end), False

    def _literal(self, start: int, end: int) -> str:
        text = self.source[start:end].decode("utf-8", "replace")
        return re.sub(r'\\([\\$`"]|\n)', lambda found: "" if found[1] == "\n" else found[1], text)

    def _variable(self, name: str, quoted: bool) -> Iterator[Piece]:
        if name in ("@", "*"):
            self.assumed.setdefault("the script is run without arguments ($@ is empty)")
            yield from self._items(self.variables.get("@", []), quoted, name)
            return
        value = self.variables.get(name)
        if isinstance(value, list):
            value = value[0] if value else ""
        yield self._not_set(name) if value is None else value, not quoted

    def _not_set(self, name: str) -> str:
        return unknown(f"${name}", "not set in the file")

    def _items(self, value: Value | None, quoted: bool, index: str) -> Iterator[Piece]:
        items = value if isinstance(value, list) else [] if value is None else [value]
        if quoted and index == "*":
            yield " ".join(items), False
            return
        for i, item in enumerate(items):
            if i:
                yield NEW_WORD
            yield item, not quoted

    def _braces(self, node: Any, quoted: bool) -> Iterator[Piece]:
        found = _BRACES.fullmatch(self.raw(node))
        if not found or found["length"] or found["indirect"]:
            yield unknown(self.raw(node)[:60], "not known before it runs"), not quoted
            return
        name, index, rest = found["name"], found["index"], found["rest"]
        if index in ("@", "*") and not rest:
            if name not in self.variables:
                yield self._not_set(name), not quoted
            yield from self._items(self.variables.get(name), quoted, index)
            return
        if not rest and index is None:
            yield from self._variable(name, quoted)
            return
        value = self._element(name, index)
        if not rest:
            yield self._not_set(name) if value is None else value, not quoted
            return
        yield from self._changed(node, name, value, rest, quoted)

    def _element(self, name: str, index: str | None) -> str | None:
        value = self.variables.get(name)
        if name in ("@", "*"):
            return " ".join(value) if isinstance(value, list) and value else None
        if not isinstance(value, list):
            return value if index in (None, "0") else None if value is None else unknown(f"${name}", "an index")
        place = int(index or 0) if re.fullmatch(r"\d{1,6}", index or "0") else len(value)
        return value[place] if place < len(value) else unknown(f"${name}[{index}]", "an index")

    def _changed(self, node: Any, name: str, value: str | None, rest: str, quoted: bool) -> Iterator[Piece]:
        operator = re.match(r":?[-=?+]|##?|%%?", rest)
        if not operator:
            yield unknown(self.raw(node)[:60], "not known before it runs"), not quoted
            return
        start = node.end_byte - 1 - len(rest[operator.end() :].encode())
        kind = operator[0].removeprefix(":")
        if kind in "-=?+":
            is_set = value is not None and not (value == "" and operator[0].startswith(":"))
            if (is_set and kind == "+") or (not is_set and kind in "-="):
                inside = list(self._default(node, start, quoted))
                default = "".join(piece[0] if piece else " " for piece in inside)
                if not is_set:
                    self.assumed.setdefault(
                        f"${name} is not set when the script starts, so it is {described(default)!r}"
                    )
                if kind == "=":
                    self.variables[name] = default
                yield from inside
            elif kind != "+":
                yield value if is_set and value is not None else self._not_set(name), not quoted
            return
        yield self._stripped(name, value, operator[0], rest[operator.end() :]), not quoted

    def _default(self, node: Any, start: int, quoted: bool) -> Iterator[Piece]:
        """The text behind ``:-`` or ``:+``, whose parts are split unless they are quoted."""
        found = [child for child in node.children if child.start_byte >= start and child.type != "}"]
        parts = [part for child in found for part in (child.children if child.type == "concatenation" else [child])]
        for part in parts:
            before = part.end_byte - len(self.raw(part).encode("utf-8", "surrogateescape"))
            yield self._literal(start, before), not quoted
            if part.children:
                yield from self.pieces(part, quoted)
            elif part.type == "raw_string":
                yield self.raw(part)[1:-1], False
            else:
                yield self._literal(before, part.end_byte), not quoted
            start = part.end_byte
        yield self._literal(start, node.end_byte - 1), not quoted

    def _stripped(self, name: str, value: str | None, operator: str, pattern: str) -> str:
        if value is None:
            return self._not_set(name)
        if is_unknown(value) or "$" in pattern or len(value) > 4096:
            return unknown(f"${{{name}{operator}{pattern}}}", "not known before it runs")
        ends: Sequence[int] = range(len(value) + 1)
        if operator in ("##", "%"):
            ends = list(reversed(ends))
        for end in ends:
            part, left = (value[:end], value[end:]) if operator[0] == "#" else (value[end:], value[:end])
            if fnmatchcase(part, pattern):
                return left
        return value

    def _arithmetic(self, node: Any) -> str:
        text = self.raw(node)[3:-2] if self.raw(node).startswith("$((") else self.raw(node)[2:-1]
        for name in _CHANGED.findall(text):
            self.variables[name[0] or name[1]] = unknown(f"${name[0] or name[1]}", "set by arithmetic")
        used = [found[1] or found[2] for found in _NAMED.finditer(text)]
        if missing := next((name for name in used if self._number(name) == "?"), ""):
            value = self.variables.get(missing)
            why = (
                f"${missing} is {described(value)}" if isinstance(value, str) else f"${missing} is not set in the file"
            )
            return unknown(self.raw(node)[:60], why)
        return self._computed(_NAMED.sub(lambda found: self._number(found[1] or found[2]), text), node)

    def _computed(self, text: str, node: Any) -> str:
        try:
            return str(_value(ast.parse(text.strip(), mode="eval").body))
        except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
            return unknown(self.raw(node)[:60], "not known before it runs")

    def _number(self, name: str) -> str:
        value = self.variables.get(name)
        return value if isinstance(value, str) and re.fullmatch(r"-?[1-9]\d{0,18}|0", value) else "?"

    def _output(self, node: Any) -> str:
        """The output of the few commands that only change a path, compute, or count the parts of a list."""
        inside = [child for child in node.children if child.type in ("command", "list", "pipeline")]
        commands = [inside[0]] if len(inside) == 1 else []
        if commands and commands[0].type != "command":
            commands = [child for child in commands[0].children if child.type == "command"]
        words = [[word for part in command.children for word in self.words(part)] for command in commands]
        match words:
            case [["dirname", path]] if not is_unknown(path):
                return str(PurePosixPath(path).parent)
            case [["basename", path, *suffix]] if not is_unknown(path):
                return PurePosixPath(path).name.removesuffix(suffix[0] if suffix else "")
            case [["realpath", path]] | [["readlink", "-f", path]] | [["cd", path], ["pwd"]]:
                return path
            case [["cd", "--" | "-P", path], ["pwd", *_]]:
                return path
            case [["pwd"]]:
                return "."
            case [["echo", text], ["tr", ",", "\\n" | "\n"], ["wc", "-l"]] if not is_unknown(text):
                return str(len(text.split(",")))
            case [["echo", text], ["awk", *separator, "{print NF}"]] if "".join(separator) == "-F," and not is_unknown(
                text
            ):
                return str(len(text.split(",")))
            case [["expr", *terms]] if not any(map(is_unknown, terms)):
                return self._computed(" ".join(terms), node)
            case [["which", path]]:
                return path
            case [["echo", *rest]] if not rest or not rest[0].startswith("-"):
                return limited("(echo)", " ".join(rest))
        return unknown(self.raw(node)[:60], "the output of a command")


def _value(node: ast.AST) -> int:
    """The value of an expression of whole numbers.

    Raises:
        ValueError: It has anything else, or grows too large.
    """
    match node:
        case ast.Constant(value=int() as number) if not isinstance(number, bool):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _value(left), _value(right)
            match op:
                case ast.Add():
                    number = a + b
                case ast.Sub():
                    number = a - b
                case ast.Mult():
                    number = a * b
                case ast.Div():
                    number = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
                case ast.Mod():
                    number = abs(a) % abs(b) * (1 if a >= 0 else -1)
                case _:
                    raise ValueError("another operator")
            if abs(number) < _LARGEST:
                return number
    raise ValueError("not whole numbers")


def assigned_in(node: Any, words: Expander) -> set[str]:
    """The variables that are set anywhere within a node."""
    found = set()
    waiting = [node]
    while waiting:
        child = waiting.pop()
        if child.type == "variable_assignment" and child.child_by_field_name("name") is not None:
            found.add(words.raw(child.child_by_field_name("name")))
        elif child.type in ("postfix_expression", "unary_expression", "binary_expression"):
            found |= {first or second for first, second in _CHANGED.findall(words.raw(child))}
        waiting += child.children
    return found


def merged(results: Sequence[Mapping[str, Value]]) -> dict[str, Value]:
    """The variables after one of several ways through a script."""
    together: dict[str, Value] = {}
    for name in dict.fromkeys(name for result in results for name in result):
        values = [result.get(name) for result in results]
        if all(value == values[0] for value in values[1:]) and values[0] is not None:
            together[name] = values[0]
            continue
        texts = [" ".join(value) if isinstance(value, list) else value for value in values]
        together[name] = joined(name, texts) or unknown(f"${name}", "not certain")
    return together
