"""The import name of ado 1.x, for code written for it: under ado 2.x ``orchestrator.x.y`` is ``ado.x.y`` itself.

Where ado 1.x is installed its own package of this name comes first, and this module is never imported.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

_OLD, _NEW = __name__, "ado"


class _Alias(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds ``orchestrator.x.y`` as the very module ``ado.x.y``, so that classes keep their identity."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(f"{_OLD}."):
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(spec.name.replace(_OLD, _NEW, 1))
        spec.loader_state = module.__spec__  # the import system is about to overwrite it
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


sys.meta_path.insert(0, _Alias())
sys.modules[__name__] = importlib.import_module(_NEW)
