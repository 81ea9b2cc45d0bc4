"""The wrapper for a Kubernetes controller, run as a process."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import autoconf

ROOT = Path(__file__).parents[2]
WRAPPER = ROOT / "examples" / "controller" / "wrapper.py"
JOB = ["llama-7b", "lora", "NVIDIA-A100-80GB-PCIe", "8192", "16", "1.1.0"]


def call(out: Path, *values: str, **more) -> tuple[dict, int]:
    process = subprocess.run(
        [sys.executable, WRAPPER, out, *values], capture_output=True, text=True, check=False, **more
    )
    assert out.exists(), process.stderr
    assert [file.name for file in out.parent.iterdir() if file.is_file()] == [out.name]
    return json.loads(out.read_text()), process.returncode


def changed(**values: str) -> list[str]:
    names = ("model", "method", "gpu", "tokens", "batch", "version")
    return [values.get(name, value) for name, value in zip(names, JOB, strict=True)]


def test_a_controller_gets_workers_and_gpus(tmp_path: Path) -> None:
    assert call(tmp_path / "out.json", *JOB) == ({"workers": 1, "gpus": 2, "error": None, "reason": None}, 0)


def test_more_gpus_than_one_worker_has_are_considered(tmp_path: Path) -> None:
    result, code = call(tmp_path / "out.json", *changed(model="llama3-8b", method="full", batch="64"))
    assert (result, code) == ({"workers": 4, "gpus": 8, "error": None, "reason": None}, 0)


@pytest.mark.parametrize(
    ("values", "reason"),
    [({"gpu": "H900"}, "gpu_model 'H900'"), ({"model": "llama2-70b", "method": "full"}, "max_gpus is 128")],
)
def test_no_recommendation_says_why_and_is_no_error(tmp_path: Path, values: dict[str, str], reason: str) -> None:
    result, code = call(tmp_path / "out.json", *changed(**values))
    assert (result["workers"], result["gpus"], result["error"], code) == (None, None, None, 0)
    assert reason in result["reason"]


@pytest.mark.parametrize(
    ("field", "value", "name"), [("batch", "0", "batch_size"), ("tokens", "x", "tokens_per_sample")]
)
def test_bad_input_names_the_field(tmp_path: Path, field: str, value: str, name: str) -> None:
    result, code = call(tmp_path / "out.json", *changed(**{field: value}))
    assert (result["workers"], result["gpus"], result["reason"], code) == (None, None, None, 0)
    assert result["error"].startswith(f"{name}: ")


def test_a_broken_installation_is_an_error(tmp_path: Path) -> None:
    copy = tmp_path / "installed" / "autoconf"
    shutil.copytree(Path(autoconf.__file__).parent, copy)
    (copy / "AutoGluonModels" / "1.1.0" / "card.json").write_text("{")
    out = tmp_path / "out.json"
    result, code = call(out, *JOB, env={"PYTHONPATH": str(copy.parent), "PATH": ""}, cwd=tmp_path)
    assert (result["workers"], result["gpus"], result["reason"], code) == (None, None, None, 1)
    assert result["error"]
