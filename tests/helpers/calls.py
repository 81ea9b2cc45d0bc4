"""List the calls of functions in autoconf that a call makes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import autoconf

_PACKAGE = str(Path(autoconf.__file__).parent)


def calls_of(ask: Callable[[], Any]) -> list[tuple[str, str]]:
    """Call a function that is warm, and list the named functions of autoconf that it called, as (module, name).

    Comprehensions and lambdas do not count: which of them are calls depends on the version of Python.
    """
    ask()
    ask()
    calls: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(_PACKAGE) and not code.co_name.startswith("<"):
            calls.append((Path(code.co_filename).relative_to(_PACKAGE).with_suffix("").as_posix(), code.co_name))

    sys.setprofile(note)
    try:
        ask()
    finally:
        sys.setprofile(None)
    return calls
