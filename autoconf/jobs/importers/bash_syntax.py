"""The syntax tree of a bash script."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from autoconf.errors import BadInput

_MOST_NODES = 40_000
_LONGEST_SCRIPT = 1 << 17  # bytes
# The scanner of tree-sitter-bash 0.25.1 passes code points to isalpha() and the like (scanner.c), which outside ASCII
# read beyond C's table: some texts crash the process. Bash gives these characters no meaning, so the grammar gets a
# plain character of a word for each of their bytes.
_ASCII = bytes(range(0x80)) + b"." * 0x80
# A comment within a command, `# like this`, which bash replaces by nothing; the grammar does not know it.
_COMMENT = re.compile(r"(?<=\s)`[ \t]*#[^`\n]*`")
# A backslash at the end of a line that nothing follows: bash takes it, the grammar does not.
_DANGLING = re.compile(r"(^|[^\\])\\[ \t]*(?=\n[ \t]*(?:\n|\Z)|\Z)")


def parsed(text: str, file: str, first_line: int) -> tuple[bytes, Any]:
    """The bytes of a script, and the root of its syntax tree, whose nodes have places in these bytes.

    Args:
        text: The script.
        file: Its name, for messages.
        first_line: The line before its first one.

    Raises:
        BadInput: The text is not bash, or too long.
    """
    text = text.replace("\r\n", "\n")
    source = text.encode("utf-8", "replace")
    if len(source) > _LONGEST_SCRIPT:
        raise BadInput(f"{file}: not a job's script: larger than {_LONGEST_SCRIPT:,} bytes")
    root = _tree(source)
    if root.has_error:
        source = _DANGLING.sub(r"\1 ", _COMMENT.sub("", text)).encode("utf-8", "replace")
        root = _tree(source)
    if root.descendant_count > _MOST_NODES:
        raise BadInput(f"{file}: not a job's script: more than {_MOST_NODES:,} parts")
    if root.has_error:
        line = _first_error(root) + first_line
        raise BadInput(f"{file}:{line}: not a command line: this is not the syntax of bash")
    return source, root


@cache
def _parser() -> Any:
    import tree_sitter_bash
    from tree_sitter import Language, Parser

    return Parser(Language(tree_sitter_bash.language()))


def _tree(source: bytes) -> Any:
    return _parser().parse(source.translate(_ASCII)).root_node


def _first_error(root: Any) -> int:
    """The line of the first part that is not the syntax of bash, from 1."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node.is_error or node.is_missing:
            return int(node.start_point[0]) + 1
        waiting += [child for child in reversed(node.children) if child.has_error or child.is_missing]
    return 1
