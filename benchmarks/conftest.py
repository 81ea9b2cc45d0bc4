"""Fixtures that measure figures with pytest-benchmark, each with its baseline, in fresh processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from environment import ENVIRONMENT

_LISTEN = """
import json, sys
names = {}
for line in sys.stdin:
    exec(json.loads(line), names)
    print(json.dumps(names.pop("result", None)), flush=True)
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="small sizes, to see that everything works")


@pytest.fixture
def quick(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--quick"))


@pytest.fixture
def fresh() -> Iterator[Callable[..., Callable[[str], Any]]]:
    """Start Python processes, run code there, and return functions that run more code and return its ``result``."""
    started: list[subprocess.Popen[str]] = []

    def start(*prepare: str) -> Callable[[str], Any]:
        process = subprocess.Popen(
            [sys.executable, "-c", _LISTEN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent,
            env=os.environ | ENVIRONMENT | {"PYTHONPATH": str(Path(__file__).parent)},
        )
        started.append(process)

        def run(code: str) -> Any:
            assert process.stdin and process.stdout
            print(json.dumps(code), file=process.stdin, flush=True)
            return json.loads(process.stdout.readline())  # nothing to read: the traceback is on standard error

        for code in prepare:
            run(code)
        return run

    yield start
    for process in started:
        process.communicate()


@pytest.fixture
def measure(benchmark: Any, quick: bool, request: pytest.FixtureRequest) -> Callable[..., dict[str, Any]]:
    """Time an action for a line of the report; ``report.row`` lists the facts that can accompany the time."""

    def measure(figure: str, action: Callable[..., Any], *, rounds: int, **more: Any) -> dict[str, Any]:
        timing = {key: more.pop(key) for key in ("args", "setup", "warmup_rounds") if key in more}
        benchmark.group = figure
        benchmark.extra_info.update(more, quick=quick, how=" ".join((request.function.__doc__ or "").split()))
        benchmark.pedantic(action, rounds=rounds, **timing)
        return benchmark.extra_info

    return measure
