"""Variables of the environment that a Python script sets itself before it loads its model."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from functools import partial

from autoconf.jobs.importers.key_table import Setting
from autoconf.jobs.importers.launch_environment import OF_ALLOCATOR, environment_settings
from autoconf.jobs.importers.python_names import Names


def allocator_set(script: Names, statements: Sequence[ast.stmt]) -> Iterator[Setting]:
    """What a script says of PyTorch's allocator, which reads its variable once, when a GPU is first used.

    Args:
        script: Its calls: a variable that is set after the first model is loaded changes nothing.
        statements: Its own statements; those of a function or a branch may not run, or run later.
    """
    first = min((call.lineno for call in script.calls.get("from_pretrained", ())), default=None)
    for node in statements:
        match node:
            case ast.Assign(
                targets=[ast.Subscript(value=owner, slice=ast.Constant(value=str(name)))],
                value=ast.Constant(value=str(value)) as given,
            ) if name in OF_ALLOCATOR and ast.unparse(owner) in ("os.environ", "environ"):
                if first is None or node.lineno < first:
                    yield from environment_settings({name: value}, partial(script.place, given))
