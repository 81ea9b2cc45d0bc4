"""ado contexts of the benchmark's own, by the helper that the tests use: the user's store stays untouched."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml
from commands import ROOT

import autoconf.ado_compat  # noqa: F401 - makes ``ado`` importable whichever ado is installed

sys.path.insert(0, str(ROOT / "tests"))
from ado_context import AdoContext

EXAMPLES = ROOT / "sweep" / "examples"
BATCHED = EXAMPLES / "operation-batched.yaml"
POINT_BY_POINT = EXAMPLES / "operation.yaml"


def new_context(folder: Path) -> AdoContext:
    """A context with an empty store.

    Args:
        folder: made if missing.
    """
    return AdoContext(folder)


def operate_batched(context: AdoContext, space: str) -> None:
    """Run the operation of operation-batched.yaml in the Ray cluster that this process is connected to."""
    context.operate("batched_sweep", space, **parameters_of(BATCHED))


def parameters_of(operation: Path) -> dict[str, Any]:
    """The parameters in an operation's file."""
    return yaml.safe_load(operation.read_text(encoding="utf-8"))["operation"]["parameters"]
