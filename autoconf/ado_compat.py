"""Which ado is installed: 2.x imports as ``ado``, 1.x as ``orchestrator``. The rest of the package asks here."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

ADO = "ado" if importlib.util.find_spec("ado") else "orchestrator"


def ado_module(name: str) -> ModuleType:
    """Import a module of the installed ado.

    Args:
        name: dotted name below ado's top package.

    Raises:
        ImportError: no ado is installed, or it has no such module.

    >>> ado_module("schema.domain").PropertyDomain.__name__
    'PropertyDomain'
    """
    return importlib.import_module(f"{ADO}.{name}")
