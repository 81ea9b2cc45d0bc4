"""Run commands in processes of their own: with a time limit, a Ray of their own, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
ROOT = HERE.parent
CONSTANT_EXPERIMENT = HERE / "constant_experiment"

#: Seconds that processes have to end by themselves once told to.
GRACE_S = 10.0


class MeasurementError(Exception):
    """A figure could not be measured; the message says why."""


@dataclass(frozen=True)
class Finished:
    """What a command that succeeded printed, and the seconds from its start to its end."""

    output: str
    wall_s: float


def environment(folder: Path) -> dict[str, str]:
    """The variables that commands run with: ado finds the constant experiment, Ray starts anew and in ``folder``, and
    AutoConf is compiled once, as an installed package is, wherever this runs."""
    return os.environ | {
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPATH": str(CONSTANT_EXPERIMENT),
        "RAY_ADDRESS": "local",
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def run(command: list[str], folder: Path, timeout_s: float) -> Finished:
    """Run a command and wait for its end.

    Args:
        command: program and arguments.
        folder: where it runs and may leave files.
        timeout_s: seconds after which it and its children are ended.

    Raises:
        MeasurementError: it failed or took too long.
    """
    # Files, because a pipe stays open as long as anything that the command started.
    with (folder / "stdout").open("w+b") as output, (folder / "stderr").open("w+b") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=environment(folder), stdout=output, stderr=errors)
        with ended_on_error(process):
            try:
                code = process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                raise MeasurementError(f"{Path(command[0]).name} took longer than {timeout_s:.0f} s") from None
        wall_s = time.perf_counter() - started
        output.seek(0)
        errors.seek(0)
        printed, complaint = output.read().decode(errors="replace"), errors.read().decode(errors="replace")
    if code:
        raise MeasurementError(f"{Path(command[0]).name} ended with {code}: {last_line(complaint or printed)}")
    return Finished(printed, wall_s)


@contextlib.contextmanager
def ended_on_error(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End a process and all that it started if anything is raised meanwhile, Ctrl-C included."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(process.pid)
            family = [*parent.children(recursive=True), parent]
            for one in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.terminate()
            for one in psutil.wait_procs(family, timeout=GRACE_S)[1]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
        process.wait()
        raise


def last_line(text: str) -> str:
    """The last line that says something.

    >>> last_line("Traceback:\\n  ...\\nValueError: no\\n\\n")
    'ValueError: no'
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"


def probe(name: str, folder: Path, timeout_s: float, **arguments: Any) -> dict[str, Any]:
    """Call a function of ``probes.py`` in a fresh process.

    Returns:
        What the function returned.
    """
    command = [sys.executable, str(HERE / "probes.py"), name, json.dumps(arguments)]
    return json.loads(last_line(run(command, folder, timeout_s).output))
