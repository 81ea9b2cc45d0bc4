"""Support ado 1.x, which is imported as ``orchestrator``, and ado 2.x, which is imported as ``ado``.

The package uses the name ``ado``. Importing this module makes that name work if ado 1.x is installed; the top-level
module ``orchestrator`` does the reverse, for code written for ado 1.x.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Alias(MetaPathFinder, Loader):
    """Imports ``name.x.y`` as the same module object as ``target.x.y``, so that classes keep their identity."""

    def __init__(self, name: str, target: str) -> None:
        self.name, self.target = name, target

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname.startswith(f"{self.name}.") else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self.target + spec.name.removeprefix(self.name))
        spec.loader_state = module.__spec__  # the import system is about to overwrite it
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def alias(name: str, target: str) -> None:
    """Make the package ``target`` importable as ``name`` as well.

    Raises:
        ImportError: ``target`` is not installed.
    """
    sys.modules[name] = importlib.import_module(target)
    sys.meta_path.insert(0, _Alias(name, target))


if importlib.util.find_spec("ado") is None:
    alias("ado", "orchestrator")
