"""Limits that keep the package readable."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = [path for path in (ROOT / "autoconf").rglob("*.py") if "AutoGluonModels" not in path.parts]
ROOMS = {
    "jobs",
    "memory",
    "predictor",
    "speed",
    "planner",
    "experiments",
    "cli",
    "service",
    "pipeline",
    "AutoGluonModels",
}


def test_the_package_has_its_rooms_and_a_few_modules():
    found = {path.name for path in (ROOT / "autoconf").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert found == ROOMS
    assert len(list((ROOT / "autoconf").glob("*.py"))) <= 6


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_module_says_first_what_it_is_for_and_is_short(module):
    text = module.read_text(encoding="utf-8")
    assert (ast.get_docstring(ast.parse(text)) or "").strip()
    assert len(text.splitlines()) <= 400


def functions(module: Path) -> Iterator[tuple[str, int]]:
    """The functions of a module, each with its number of lines, excluding the docstring."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            described = docstring.count("\n") + 1 if docstring else 0
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1 - described


def test_no_function_is_longer_than_50_lines():
    long = [(str(m.relative_to(ROOT)), name, lines) for m in MODULES for name, lines in functions(m) if lines > 50]
    assert long == []
