"""Make environments with other versions of the training libraries on demand, and run traces in them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from autoconf.errors import AutoConfError

_ROOT = Path(__file__).parents[3]  # the checkout, in whose folder environments are made
_TORCH = "torch==2.13.0"
# Packages that ``trace_jobs`` imports in addition to the libraries; a test checks that the list is complete.
NEEDED = ("filelock", "lazy-loader", "numpy", "pydantic", "pyyaml", "rich")


@dataclass(frozen=True)
class Libraries:
    """Versions of the libraries that decide the memory of training; torch is always 2.13.0, which can trace FSDP.

    >>> Libraries("4.48.1", "0.13.2", "1.0.1", "0.43.3").name
    'transformers-4.48.1-peft-0.13.2-accelerate-1.0.1-bitsandbytes-0.43.3'
    """

    transformers: str
    peft: str
    accelerate: str
    bitsandbytes: str
    deepspeed: str = ""  # empty: not installed

    @property
    def versions(self) -> dict[str, str]:
        """The version of each library that is installed."""
        return {library: version for library, version in vars(self).items() if version}

    @property
    def name(self) -> str:
        return "-".join(f"{library}-{version}" for library, version in self.versions.items())


def python_of(libraries: Libraries) -> Path:
    """The interpreter of an environment with these libraries, which is made if needed, in about a minute.

    Raises:
        AutoConfError: it cannot be installed.
    """
    folder = _ROOT / ".venv-measured" / libraries.name
    python, installed = folder / "bin" / "python", folder / "installed"
    packages = [*(f"{name}=={version}" for name, version in libraries.versions.items()), *NEEDED]
    folder.parent.mkdir(exist_ok=True)
    with filelock.FileLock(f"{folder}.lock"):
        if not (installed.exists() and installed.read_text().split() == packages):
            print(f"making an environment: {libraries.name}", file=sys.stderr)
            _call([sys.executable, "-m", "venv", "--clear", str(folder)])
            _call([str(python), "-m", "pip", "install", "--quiet", _TORCH])
            _call([str(python), "-m", "pip", "install", "--quiet", _TORCH, *packages])
            installed.write_text("\n".join(packages))
    return python


def _call(command: list[str]) -> None:
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode:
        last = (finished.stderr.strip().splitlines() or [f"exit {finished.returncode}"])[-1]
        raise AutoConfError(f"{' '.join(command)} failed: {last}")


def traced(libraries: Libraries | None, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Trace jobs with given libraries; ``None`` means the installed libraries.

    Args:
        jobs: the input of ``autoconf.pipeline.validation.trace_jobs``.

    Returns:
        For each job its ``RankFigures`` as a dict, or ``{"problem": text}`` if it cannot be traced.

    Raises:
        AutoConfError: the environment cannot be made, or the process fails.
    """
    return run(libraries, "autoconf.pipeline.validation.trace_jobs", jobs)


def run(libraries: Libraries | None, module: str, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run a module with given libraries on jobs, which it reads from standard input as JSON.

    Returns:
        What it writes to standard output, for each job.

    Raises:
        AutoConfError: the environment cannot be made, or the process fails.
    """
    python = sys.executable if libraries is None else str(python_of(libraries))
    environment = {
        **os.environ,
        "PYTHONPATH": str(_ROOT),
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONWARNINGS": "ignore",
    }
    command = [python, "-m", module]
    finished = subprocess.run(command, input=json.dumps(jobs), env=environment, stdout=subprocess.PIPE, text=True)
    if finished.returncode:
        raise AutoConfError(f"traces with {libraries or 'the installed libraries'} failed (exit {finished.returncode})")
    return json.loads(finished.stdout)
