"""The code of a notebook, without what belongs to the shell or to IPython."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Magics of a cell that run its code as Python.
_OF_PYTHON = ("%%capture", "%%time", "%%timeit", "%%prun", "%%memit")
_COMMAND = re.compile(r"^(\s*)([!%?]|(pip|conda|mamba) install\b)")  # IPython takes the latter without a sign
_OUTPUT_OF_COMMAND = re.compile(r"^(\s*[\w, ]+=\s*)[!%].*")


def code_of(notebook: Mapping[str, Any]) -> str:
    """The code cells of a notebook, without the commands to the shell and to IPython.

    >>> code_of({"cells": [{"cell_type": "code", "source": ["!pip install trl\\n", "a = 1"]}, {"cell_type": "raw"}]})
    'pass\\na = 1\\n'
    """
    found = notebook.get("cells")
    cells = found if isinstance(found, list) else []
    sources = [c.get("source", "") for c in cells if isinstance(c, Mapping) and c.get("cell_type") == "code"]
    texts = ("".join(map(str, source)) if isinstance(source, list) else str(source) for source in sources)
    return "\n".join(_of_cell(text) for text in texts) + "\n"


def _of_cell(text: str) -> str:
    lines = text.split("\n")
    first = next((line.strip() for line in lines if line.strip()), "")
    if first.startswith("%%") and not first.startswith(_OF_PYTHON):
        return ""  # of another language, or a file
    code, continues = [], False
    for line in lines:
        command = _COMMAND.match(line)
        if continues or command:
            code.append("" if continues or command is None else f"{command[1]}pass")
            continues = line.rstrip().endswith("\\")
        else:
            code.append(_OUTPUT_OF_COMMAND.sub(r"\1input()", line))
    return "\n".join(code)
