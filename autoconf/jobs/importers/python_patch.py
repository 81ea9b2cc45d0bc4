"""Change the GPU counts of a Python script that submits a job with Kubeflow's SDK, and nothing else.

A count is edited where its literal is. The new text is read again, and returned only if it has exactly the layout and
otherwise the same settings.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping

from autoconf.errors import BadInput
from autoconf.jobs.importers.gpu_counts import Layout
from autoconf.jobs.importers.python_code import Code, count_literals, read_code
from autoconf.jobs.importers.python_kubeflow import PROCESSES
from autoconf.jobs.importers.schedulers import NODES, PER_NODE

_COUNTING = ("nnodes", "nproc_per_node", "num_processes")
_ARGUMENTS = {NODES: "the number of nodes", PER_NODE: "the GPUs of a node", PROCESSES: "the processes of a node"}


def patch_code(text: str, file: str, layout: Layout) -> tuple[str, int, tuple[str, ...]]:
    """Change the counts of a script.

    Args:
        text: Its text.
        file: Its name.
        layout: The counts.

    Returns:
        The new text, the GPUs before, and which counts differ.

    Raises:
        BadInput: It submits no job, a count is not a literal, or another setting would change.

    >>> script = "trainer = CustomTrainer(f, num_nodes=2, resources_per_node={'gpu': 8})"
    >>> patch_code(script, "a.py", Layout(4, 1))[0].partition("(f, ")[2]
    "num_nodes=1, resources_per_node={'gpu': 4})"
    """
    literals = count_literals(text, file)
    if not literals:
        raise BadInput(f"{file}: submits no job with Kubeflow's SDK, so it counts no GPUs that --patch changes")
    wanted = {NODES: layout.workers, PER_NODE: layout.gpus, PROCESSES: layout.gpus}
    numbers: dict[str, int] = {}
    for what, name in _ARGUMENTS.items():
        node = literals.get(what)
        if what not in literals and what == PROCESSES:
            continue
        if not isinstance(node, ast.Constant) or not str(node.value).isdecimal():
            raise BadInput(f"{file}: {name} must be a literal in the call of Kubeflow's SDK for --patch")
        numbers[what] = int(str(node.value))
    new = _edited(text, {what: (node, wanted[what]) for what, node in literals.items() if what in numbers})
    if _rest(read_code(text, file)) != _rest(read_code(new, file)):
        raise BadInput(f"{file}: another setting would change with the counts; write each count out where it is used")
    changed = tuple(what for what, number in numbers.items() if number != wanted[what])
    return new, numbers[NODES] * numbers[PER_NODE], changed


def _edited(text: str, numbers: Mapping[str, tuple[ast.expr, int]]) -> str:
    """The text with other numbers; ``ast`` counts columns in bytes of UTF-8."""
    lines = [line.encode() for line in text.splitlines(keepends=True)]
    places = {(node.lineno - 1, node.col_offset, node.end_col_offset or 0): new for node, new in numbers.values()}
    for (line, start, end), new in sorted(places.items(), reverse=True):
        old = lines[line][start:end]
        quote = old[:1] if old[:1] in (b"'", b'"') else b""
        lines[line] = lines[line][:start] + quote + str(new).encode() + quote + lines[line][end:]
    return b"".join(lines).decode()


def _rest(code: Code) -> list[tuple[str, str, str]]:
    """The settings without those that count."""
    return [(s.dialect, s.key, repr(s.value)) for s in code.settings if s.key not in _COUNTING]
