"""Run the command `ado-autoconf` as a process on a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

COMMAND = str(Path(sys.executable).with_name("ado-autoconf"))


def on_a_terminal(stream: str, arguments: Iterable[str], folder: Path, columns: int = 100, **environment: str) -> str:
    """The output of the command on standard output or error if that is a terminal; the other one goes to a file."""
    ours, theirs = pty.openpty()
    other = {"stdout": "stderr", "stderr": "stdout"}[stream]
    with (folder / other).open("wb") as file:
        process = subprocess.Popen(
            [COMMAND, *arguments],
            cwd=folder,
            env={**os.environ, "TERM": "xterm", "COLUMNS": str(columns), **environment},
            **{stream: theirs, other: file},
        )
    os.close(theirs)
    text = b""
    with suppress(OSError):  # Linux raises it when the other side is closed
        while block := os.read(ours, 65536):
            text += block
    os.close(ours)
    assert process.wait() == 0
    return text.decode()
