"""Configuration of all tests and doctests: the markers that `make test-fast` and `make test-slow` select by."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

# Tests must not use a Ray cluster that already runs on this machine. Ray reads this when it starts.
os.environ["RAY_ADDRESS"] = "local"

_ROOT = Path(__file__).parent
# Paths, and the requirements of every test below them. A test that is slow for another reason has its own marker.
_NEEDS = {
    "autoconf/pipeline": "torch",
    "tests/pipeline": "torch",
    "tests/memory/test_model.py": "torch",
    "tests/memory/test_optimizers.py": "torch",
    "tests/predictor/test_drift.py": "long",
    "tests/predictor/test_fork.py": "long",
    "tests/predictor/test_host_process.py": "long",
    "tests/repository/test_benchmarks.py": "long",
    "tests/repository/test_distribution.py": "long",
    "tests/cli/test_process.py": "long",
    "tests/cli/test_spellings.py": "long",
    "tests/repository/test_your_own.py": "slow",
    "tests/pipeline/test_composition.py": "slow",
    "tests/pipeline/test_rank_truth.py": "slow",
    "tests/cli/test_plot.py": "ray",
    "tests/experiments": "ray",
    "tests/jobs/test_bad_input.py": "ray",
    "tests/repository/test_documents.py": "ray",
    "tests/repository/test_make_run.py": "ray",
}
# Versions are traced on Python 3.11, where make installs torch; without it, modules that need it cannot be imported.
collect_ignore = [] if find_spec("torch") else ["autoconf/pipeline"]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skip the import of PyTorch, which takes seconds, if ``-m`` deselects all tests that need it."""
    leaves_out = "not torch" in (config.option.markexpr or "")
    return True if leaves_out and "torch" in _needs(collection_path) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their path, and run the slowest file first."""
    for item in items:
        for needed in _needs(item.path):
            item.add_marker(needed)
    items.sort(key=lambda item: item.path.name != "test_your_own.py")


def _needs(path: Path) -> list[str]:
    place = path.relative_to(_ROOT).as_posix() if path.is_relative_to(_ROOT) else ""
    return [needed for start, needed in _NEEDS.items() if f"{place}/".startswith(f"{start}/")]
