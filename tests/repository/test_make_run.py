"""`make run` ends with the answer of run_experiment."""

import subprocess
import sys
from pathlib import Path

import pytest

from autoconf.predictor.registry import DEFAULT

ROOT = Path(__file__).parents[2]


def make_run(environment: Path) -> subprocess.CompletedProcess[str]:
    command = ["make", "--no-print-directory", "run", f"VENV={environment}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_the_last_line_is_the_answer():
    if not Path(sys.prefix, "installed").exists():
        pytest.skip("this environment was not made by make")
    done = make_run(Path(sys.prefix))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "Result:" in lines
    assert lines[-1] == "can_recommend 1, gpus 4, workers 1"


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """An environment with a controllable run_experiment, because the real one cannot be made to fail."""
    (tmp_path / "bin").mkdir()
    for name in ("bin/python", "installed"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("script", "last_line", "succeeds"),
    [
        ("echo Result:; echo 'can_recommend      0'; echo 'dtype: object'", "can_recommend 0", True),
        ("echo 'gpus   4'; echo 'workers   3'", "gpus 4, workers 3", True),
        ("echo 'can_recommend      1'; exit 3", "can_recommend      1", False),
        ("echo 'WARN:   Measurement request failed unexpectedly.'", "no answer", False),
    ],
)
def test_the_answer_and_the_failure_are_those_of_run_experiment(environment, script, last_line, succeeds):
    run_experiment = environment / "bin" / "run_experiment"
    run_experiment.write_text(f"#!/bin/sh\n{script}\n")
    run_experiment.chmod(0o755)
    done = make_run(environment)
    assert done.stdout.splitlines()[-1] == last_line
    assert (done.returncode == 0) is succeeds


def test_the_first_example_uses_the_newest_version():
    text = (ROOT / "examples" / "qwen.yaml").read_text(encoding="utf-8")
    assert f"model_version: {DEFAULT}\n" in text and "stack: trl\n" in text
