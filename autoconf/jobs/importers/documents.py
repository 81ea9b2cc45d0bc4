"""Load YAML and JSON from untrusted files: limits, unique keys, and the line of every value."""

from __future__ import annotations

import codecs
import copy
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from autoconf.errors import BadInput
from autoconf.files import cannot_read, file_bytes

MAX_BYTES = 1 << 20
MAX_VALUES = 20_000  # with aliases expanded; a large Kubernetes manifest has a few thousand
_LONG_TEXT = 1_000  # a text counts once more for each of so many characters, so that aliases cannot multiply it
MAX_DEPTH = 100
MAX_DIGITS = 100
MAX_DIRECTIVES = 100  # libyaml compares each %TAG with all earlier ones

_PREFIX = "tag:yaml.org,2002:"
_TAGS: dict[type, set[str]] = {
    yaml.ScalarNode: {f"{_PREFIX}{name}" for name in ("null", "bool", "int", "float", "str", "merge", "value")},
    yaml.SequenceNode: {f"{_PREFIX}seq"},
    yaml.MappingNode: {f"{_PREFIX}map"},
}
_MERGE = f"{_PREFIX}merge"
_DATE = f"{_PREFIX}timestamp"
_RESOLVER: Any = yaml.resolver.Resolver()
_NUMBERS = (f"{_PREFIX}int", f"{_PREFIX}float")


Path = tuple[str | int, ...]  # keys and indices


class NotDocuments(BadInput):
    """A text is neither YAML nor JSON."""


class Document(NamedTuple):
    """One YAML or JSON document.

    Attributes:
        value: Dicts with text keys, lists, text, numbers, booleans and ``None``.
        node: The same as YAML nodes with positions in the text, merge keys expanded; an alias has the position of the
            alias. ``None`` for the rare JSON that YAML cannot read, such as one with a key of 2,000 characters.
    """

    value: Any
    node: yaml.Node | None

    def line(self, *path: str | int) -> int | None:
        """The line of a key or of a list's item, from 1; ``None`` if there is no such value or no position.

        >>> (document,) = load_documents("a:\\n  b: [1,\\n   2]", "job.yaml")
        >>> document.line("a", "b"), document.line("a", "b", 1), document.line("c")
        (2, 3, None)
        """
        node: yaml.Node | None = self.node
        line = None
        for name in path:
            key, node = _entry(node, name)
            if key is None:
                return None
            line = _line(key)
        return line

    def closest_line(self, *path: str | int) -> int | None:
        """The line of a value, or of the closest one around it that has a line.

        >>> load_documents("a: {b: 1}", "job.yaml")[0].closest_line("a", "b", "c")
        1
        """
        lines = (self.line(*path[:end]) for end in range(len(path), 0, -1))
        return next((line for line in lines if line is not None), None)


def dotted(path: Path) -> str:
    """A path as messages write it.

    >>> dotted(("spec", "trainer", "args", 2))
    'spec.trainer.args[2]'
    """
    return "".join(f"[{name}]" if isinstance(name, int) else f".{shortened(name)}" for name in path).removeprefix(".")


def read_text(path: str) -> str:
    """Read a file of at most 1 MiB as text.

    Raises:
        BadInput: The file cannot be read, is too large, or is not UTF-8.
    """
    return decode(read_bytes(path), path)


def read_bytes(path: str) -> bytes:
    """Read a file of at most 1 MiB.

    Raises:
        BadInput: The file cannot be read or is too large.
    """
    try:
        data = file_bytes(path, MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise cannot_read(shortened(path), error) from None
    if len(data) > MAX_BYTES:
        raise BadInput(f"{path}: cannot read it: larger than {MAX_BYTES} bytes, the most that is read")
    return data


def decode(data: bytes, file: str) -> str:
    """Decode UTF-8, without a byte order mark and without null characters; the error names the line."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise BadInput(f"{file}: UTF-16 text; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BadInput(f"{file}:{line}: not UTF-8 text: byte 0x{data[error.start]:02x}") from None
    if "\0" in text:
        raise BadInput(f"{file}:{text.partition(chr(0))[0].count(chr(10)) + 1}: not text: a null character")
    return text


def shortened(text: object, longest: int = 80) -> str:
    """A text for a message, cut in the middle where it is long.

    >>> shortened("a" * 50 + "b" * 50, 13)
    'aaaaa...bbbbb'
    """
    shown = printable(str(text))
    half = (longest - 3) // 2
    return shown if len(shown) <= longest else f"{shown[:half]}...{shown[-half:]}"


def printable(text: str) -> str:
    """A text with control characters as escapes, so that a file cannot steer a terminal; line ends stay.

    >>> printable("a\\x1b[31m")
    'a\\\\x1b[31m'
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def load_documents(text: str, file: str) -> list[Document]:
    """Load the documents of a YAML or JSON text; empty ones are left out.

    Dates are text, and so are keys such as ``8``, ``on`` or ``null``.

    Args:
        text: A file's text, or one embedded in another file.
        file: What messages call the text.

    Raises:
        NotDocuments: The text is neither YAML nor JSON.
        BadInput: It has a repeated key, a key that is not text, a tag of another type, an alias inside of what it
            refers to, a value that its tag does not allow, or more values or levels than the limits.

    >>> [document.value for document in load_documents("a: &x [1, 2024-01-01]\\n---\\n{on: [.5], b: null}", "job.yaml")]
    [{'a': [1, '2024-01-01']}, {'on': [0.5], 'b': None}]
    >>> load_documents("a: 1\\nb: 2\\na: 3", "job.yaml")
    Traceback (most recent call last):
    autoconf.errors.BadInput: job.yaml:3: the key 'a' is repeated
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_int=_json_int)
    except (ValueError, RecursionError):  # not JSON, or JSON whose fault the YAML loader finds with its line
        try:
            return [d for d in _load_yaml(text, file) if d.value is not None]
        except NotDocuments as error:
            if _looks_like_a_manifest(text):  # which would otherwise count as a script with the commands in it
                raise BadInput(f"{error}, as a manifest of Kubernetes has to be") from None
            raise
    try:
        # Between JSON's tokens tabs are allowed, in its strings they are not: positions stay.
        nodes = list(_Composer(text.replace("\t", " "), file).nodes())
    except NotDocuments:
        _check_size(value, file)
        _check_text(value, file)
        nodes = []
    return [Document(value, nodes[0] if nodes else None)]


def _looks_like_a_manifest(text: str) -> bool:
    """Whether a text has the first keys of a manifest, and is neither a template nor a script that writes one."""
    keys = (re.search(rf"^\s*{key}:\s+\w", text, re.MULTILINE) for key in ("apiVersion", "kind"))
    return all(keys) and "<<" not in text and "{{" not in text


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key is repeated")
    return dict(pairs)


def _json_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError("a number is too long")
    return int(digits)


def _check_size(value: Any, file: str) -> None:
    level, depth, size = [value], 0, 0
    while level:
        size, depth = size + len(level), depth + 1
        _check_limits(size, depth, file)
        lists = (v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list))
        level = [item for items in lists for item in items]


def _check_text(value: Any, file: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadInput(f"{file}: a text has half of a surrogate pair, such as \\ud800") from None


def _check_limits(size: int, depth: int, where: str) -> None:
    if size > MAX_VALUES:
        raise BadInput(f"{where}: more than {MAX_VALUES:,} values (with aliases expanded), more than are read")
    if depth > MAX_DEPTH:
        raise BadInput(f"{where}: nested more than {MAX_DEPTH} levels deep")


def _load_yaml(text: str, file: str) -> Iterator[Document]:
    values = yaml.constructor.SafeConstructor()
    for node in _Composer(text, file).nodes():
        try:
            yield Document(_value(node, values, file), node)
        except yaml.constructor.ConstructorError as error:  # what << merges is no mapping
            line = error.problem_mark.line + 1 if error.problem_mark else _line(node)
            raise BadInput(f"{file}:{line}: cannot merge: {error.problem}") from None


def _value(node: yaml.Node, values: yaml.constructor.SafeConstructor, file: str) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, values, file) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        values.flatten_mapping(node)
        return {key.value: _value(value, values, file) for key, value in node.value}
    where = f"{file}:{_line(node)}"
    if node.tag in _NUMBERS and len(node.value) > MAX_DIGITS:
        raise BadInput(f"{where}: a number of {len(node.value):,} characters; at most {MAX_DIGITS} are read")
    try:
        return values.construct_object(node)
    except (ValueError, LookupError):
        kind = node.tag.removeprefix(_PREFIX)
        raise BadInput(f"{where}: {shortened(node.value)!r} is not a value of the tag !!{kind}") from None


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _entry(node: yaml.Node | None, name: str | int) -> tuple[yaml.Node | None, yaml.Node | None]:
    """The node that has the line of an entry, and the node of its value."""
    if isinstance(node, yaml.MappingNode):
        found = [(key, value) for key, value in node.value if key.value == name]
        return found[-1] if found else (None, None)  # merged entries come first, and the others override them
    if isinstance(node, yaml.SequenceNode) and isinstance(name, int) and name < len(node.value):
        return node.value[name], node.value[name]
    return None, None


def child(node: yaml.Node | None, *path: str | int) -> yaml.Node | None:
    """The node at a path of keys and indices below a node; ``None`` if there is none."""
    for name in path:
        node = _entry(node, name)[1]
    return node


def _marks(event: Any) -> tuple[Any, Any]:
    return event.start_mark, event.end_mark


@dataclass
class _Part:
    """A node and the nodes below it, aliases expanded."""

    node: yaml.Node
    size: int = 1
    height: int = 1
    anchor: str | None = None
    children: list[yaml.Node] = field(default_factory=list)


class _Composer:
    """Builds nodes from libyaml's events, without recursion, and stops as soon as a limit is passed.

    The library's own composer recurses in C, expands no alias, and gives an alias the position of its anchor.
    """

    def __init__(self, text: str, file: str) -> None:
        if text.count("\n%") > MAX_DIRECTIVES:
            raise NotDocuments(f"{file}: not YAML: more than {MAX_DIRECTIVES} directives")
        self._text = text
        self._file = file
        self._size = 0
        self._open: list[_Part] = []
        self._anchors: dict[str, _Part | None] = {}  # None while the node is not complete

    def nodes(self) -> Iterator[yaml.Node]:
        """Yield the root of each document."""
        try:
            for event in yaml.parse(self._text, Loader=yaml.CSafeLoader):
                root = self._take(event)
                if root is not None:
                    yield root.node
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise NotDocuments(f"{self._file}:{line}: not YAML: {error.problem}") from None
        except (yaml.YAMLError, UnicodeEncodeError):
            raise NotDocuments(f"{self._file}: not YAML: it has a character that YAML does not allow") from None

    def _take(self, event: yaml.Event) -> _Part | None:
        """Take one event in; return the root when it completes a document."""
        match event:
            case yaml.DocumentStartEvent():
                self._anchors = {}
            case yaml.AliasEvent():
                return self._complete(self._aliased(event))
            case yaml.ScalarEvent():
                tag = self._tag(event, yaml.ScalarNode, event.value, event.implicit)
                return self._complete(self._opened(event, yaml.ScalarNode(tag, event.value, *_marks(event))))
            case yaml.CollectionStartEvent():
                kind = yaml.MappingNode if isinstance(event, yaml.MappingStartEvent) else yaml.SequenceNode
                tag = self._tag(event, kind, None, event.implicit)
                self._open.append(self._opened(event, kind(tag, [], *_marks(event))))
            case yaml.CollectionEndEvent():
                part = self._open.pop()
                part.node.end_mark = _marks(event)[1]
                part.node.value = self._pairs(part) if isinstance(part.node, yaml.MappingNode) else part.children
                return self._complete(part)
        return None

    def _tag(self, event: Any, kind: type, value: str | None, implicit: Any) -> str:
        tag = event.tag
        if tag is None or tag == "!":
            tag = _RESOLVER.resolve(kind, value, implicit).replace(_DATE, f"{_PREFIX}str")
        if tag not in _TAGS[kind]:
            raise BadInput(f"{self._where(event)}: the tag {shortened(tag)!r} is not read")
        return str(tag)

    def _where(self, event: Any) -> str:
        return f"{self._file}:{event.start_mark.line + 1}"

    def _opened(self, event: Any, node: yaml.Node) -> _Part:
        part = _Part(node, anchor=event.anchor)
        if isinstance(node, yaml.ScalarNode):
            part.size += len(node.value) // _LONG_TEXT
        self._grow(event, part.size, 1)
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        return part

    def _grow(self, event: yaml.Event, size: int, height: int) -> None:
        self._size += size
        _check_limits(self._size, len(self._open) + height, self._where(event))

    def _aliased(self, event: yaml.AliasEvent) -> _Part:
        name = shortened(event.anchor)
        if event.anchor not in self._anchors:
            raise NotDocuments(f"{self._where(event)}: the alias *{name} has no anchor")
        part = self._anchors[event.anchor]
        if part is None:
            raise BadInput(f"{self._where(event)}: the alias *{name} is inside of what it refers to")
        self._grow(event, part.size, part.height)
        node = copy.copy(part.node)
        node.start_mark, node.end_mark = _marks(event)
        return _Part(node, part.size, part.height)

    def _complete(self, part: _Part) -> _Part | None:
        if part.anchor is not None:
            self._anchors[part.anchor] = part
        if not self._open:
            return part
        parent = self._open[-1]
        parent.children.append(part.node)
        parent.size += part.size
        parent.height = max(parent.height, part.height + 1)
        return None

    def _pairs(self, part: _Part) -> list[tuple[yaml.Node, yaml.Node]]:
        pairs = list(zip(part.children[::2], part.children[1::2], strict=True))
        seen = set()
        for key, _ in pairs:
            where = f"{self._file}:{_line(key)}"
            if not isinstance(key, yaml.ScalarNode):
                raise BadInput(f"{where}: a key must be text")
            if key.value in seen and key.tag != _MERGE:
                raise BadInput(f"{where}: the key {shortened(key.value)!r} is repeated")
            seen.add(key.value)
        return pairs
