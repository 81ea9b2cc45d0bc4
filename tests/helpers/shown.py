"""Compare the outputs that documents show with the actual outputs, and update them.

``python tests/helpers/shown.py`` writes into all documents what is printed today.
"""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
from typer.testing import CliRunner

from autoconf import cli

ROOT = Path(__file__).parents[2]
# A command alone in a block, and its output in the block below; a first line ``...`` omits the lines before.
_COMMAND = re.compile(r"```bash\n(ado-autoconf [^\n]*)\n```\n\n```text\n(.*?)```", re.DOTALL)
_PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
_WIDTH = 100


def documents() -> list[Path]:
    """Every document of the repository."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("autoconf/*/*.md"), *(ROOT / "docs").rglob("*.md")]
    return sorted([*found, *ROOT.glob("sweep/*.md"), *ROOT.glob("examples/*/*.md")])


def printed(command: str) -> str:
    """The output of a command on a terminal, without colors and surrounding blank lines."""
    names = [found.name for found in pkgutil.walk_packages(cli.__path__, "autoconf.cli.")]
    with ExitStack() as stack:
        for module in map(importlib.import_module, names):  # all, as commands import some of them only when they run
            if hasattr(module, "is_terminal"):
                stack.enter_context(patch.object(module, "is_terminal", lambda stream: True))
        result = CliRunner().invoke(cli.app, shlex.split(command)[1:], env={"COLUMNS": str(_WIDTH), "TERM": "dumb"})
    assert result.exit_code == 0, f"{command}: {result.output}"
    lines = [line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", result.stdout).splitlines()]
    return "\n".join(lines).strip("\n") + "\n"


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Each command whose output a document shows, and that output."""
    yield from _COMMAND.findall(text)


def shortened(shown: str, output: str) -> str:
    """An output without the lines that a document omits.

    >>> print(shortened("...\\non 1 GPU: old\\n", "first\\non 1 GPU: new\\nlast\\n"), end="")
    ...
    on 1 GPU: new
    last
    """
    first, _, rest = shown.partition("\n")
    if first != "...":
        return output
    begin = output.find("\n" + rest.split(":")[0].rstrip("\n"))
    assert begin >= 0, f"no line begins with {rest.splitlines()[0]!r} in {output}"
    return "...\n" + output[begin + 1 :]


def python(text: str) -> Iterator[tuple[str, str]]:
    """Each block of Python in a document, and the comment below its last line, on one line."""
    for block in _PYTHON.findall(text):
        end = ast.parse(block).body[-1].end_lineno
        comment = re.findall(r"^# +(.*)$", "\n".join(block.splitlines()[end:]), re.MULTILINE)
        yield block, " ".join(comment)


def value(block: str, names: dict[str, Any]) -> str:
    """The result of the last line of a block, with two decimals."""
    *before, last = ast.parse(block).body
    assert isinstance(last, ast.Expr), block
    exec(compile(ast.Module(before, []), "document", "exec"), names)
    given = eval(compile(ast.Expression(last.value), "document", "eval"), names)
    return re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):.2f}", repr(given))


def _rewritten(text: str) -> str:
    def command(match: re.Match[str]) -> str:
        output = shortened(match[2], printed(match[1]))
        return f"```bash\n{match[1]}\n```\n\n```text\n{output}```"

    def block(match: re.Match[str]) -> str:
        code = match[1]
        end = ast.parse(code).body[-1].end_lineno
        lines = code.splitlines()
        if not any(line.startswith("# ") for line in lines[end:]):
            return match[0]
        jobs = pd.read_csv(ROOT / "examples" / "two-stacks.csv")
        return "```python\n" + "\n".join([*lines[:end], *_comment(value(code, {"jobs": jobs}))]) + "\n```"

    return _PYTHON.sub(block, _COMMAND.sub(command, text))


def _comment(given: str) -> list[str]:
    """A comment of lines of at most 110 characters, indented below an opening bracket."""
    indent = "# " + " " * (given.find("(") + 1)
    lines, line = [], "# "
    for word in given.split(" "):
        if len(line) + len(word) > 110:
            lines.append(line.rstrip())
            line = indent
        line += f"{word} "
    return [*lines, line.rstrip()]


def main() -> None:
    """Update the outputs in all documents."""
    os.chdir(ROOT)
    for document in documents():
        text = document.read_text(encoding="utf-8")
        if document.name != "your-model-and-cluster.md" and (new := _rewritten(text)) != text:
            document.write_text(new, encoding="utf-8")
            print(f"changed {document.relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    main()
