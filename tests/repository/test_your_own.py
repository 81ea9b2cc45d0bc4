"""The commands and Python code of ``docs/guides/your-model-and-cluster.md`` run and print the shown outputs."""

import ast
import os
import re
import shlex
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from autoconf.jobs.presets import SETTINGS, presets, training_stack
from autoconf.memory.model import gpu_memory
from autoconf.memory.store import ModelsTable
from autoconf.pipeline.catalog import NEWEST
from autoconf.pipeline.tracing.trace_file import read_trace
from autoconf.predictor.registry import MODELS

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "guides" / "your-model-and-cluster.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A folder in which the commands of the document have run, and the output of each command."""
    pytest.importorskip("torch", reason="traces need the extra [build]")
    folder = tmp_path_factory.mktemp("followed")
    (folder / "examples").symlink_to(ROOT / "examples")
    environment = {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder / "data"), "COLUMNS": "120"}
    printed: dict[str, str] = {}
    for block in re.findall(r"```bash\n(.*?)```", DOCUMENT, re.DOTALL):
        for line in block.splitlines():
            program, *arguments = shlex.split(line)
            if program == "export":
                environment |= dict([arguments[0].split("=")])
                continue
            if program == "pip":
                arguments.append("--help")  # it would download gigabytes
            command = [str(Path(sys.executable).with_name(program)), *arguments]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
            printed[f"{program} {arguments[0]}"] = done.stdout
    (script,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    *statements, last = ast.parse(script).body
    lines = [*map(ast.unparse, statements), f"print({ast.unparse(last)})"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder, {**printed, "python": done.stdout}


def shown(first_line: str) -> list[str]:
    """The lines of the block of the document with this first line; omitted lines are shown as ``...``."""
    (block,) = [b for b in re.findall(r"```text\n(.*?)```", DOCUMENT, re.DOTALL) if b.startswith(first_line)]
    return [line.rstrip() for line in block.splitlines() if line.strip() not in ("", "...")]


def peaks(table: ModelsTable, model: str) -> dict[tuple[str, str, bool, int], float]:
    """Peaks of all methods under every preset, on one GPU and on each of eight."""
    found = {}
    for preset, method, several in product(presets(), ("full", "lora", "qlora"), (False, True)):
        stack = training_stack(method, True, preset, *[None] * len(SETTINGS))
        memory = gpu_memory(table, model, method, stack, several=several)
        for tokens in (512, 8192, 131_072):
            peak = memory.peak_bytes(np.array([8 if several else 1]), np.array([tokens]))
            found[preset, method, several, tokens] = float(peak[0])
    return found


@pytest.mark.parametrize(
    ("command", "begins"), [("ado-autoconf trace", "my-model: "), ("ado-autoconf train", "made version 2.0.0+mine")]
)
def test_the_document_shows_the_printed_output(followed, command, begins):
    printed = [line.rstrip() for line in followed[1][command].splitlines()]
    for line in shown(begins):
        assert line in printed


def test_a_known_model_under_another_name_has_the_released_figures(followed):
    file = followed[0] / "my-model.traces.parquet"
    trace, table = read_trace(file), ModelsTable.read(MODELS / NEWEST)
    released = table.figures("qwen2.5-0.5b")
    assert trace.figures.units == released.units
    assert set(trace.figures.layers) == set(released.layers)
    for way, moments in released.layers.items():
        np.testing.assert_array_equal(trace.figures.layers[way], moments)
    assert peaks(ModelsTable.read(file), "my-model") == peaks(table, "qwen2.5-0.5b")


def test_ado_and_python_get_the_answer_of_the_command(followed):
    _, printed = followed
    (answer,) = re.findall(r"# (Recommendation\(.*\))", DOCUMENT)
    assert printed["python"].strip() == answer
    gpus = re.search(r"gpus=(\d+)", answer)
    assert gpus is not None
    for command in ("run_experiment examples/my-job.yaml", "ado-autoconf recommend"):
        assert re.search(rf"^ ?gpus +{gpus[1]} *$", printed[command], re.MULTILINE), command
