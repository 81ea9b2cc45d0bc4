"""The experiment `min_gpu_recommender` through all interfaces: a plain call, YAML, the ado API, and an operation."""

import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from autoconf.jobs.job import TRAINING_STACK, Workload
from autoconf.min_gpu_recommender import min_gpu_recommender

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def run(*command: str | Path) -> str:
    """Run a command as a user does, and return what it printed."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def values(printed: str) -> dict[str, str]:
    """The last word of each line of a printed series, by the first word."""
    return {line.split()[0]: line.split()[-1] for line in printed.splitlines() if len(line.split()) >= 2}


def tool(name: str) -> Path:
    return Path(sys.executable).with_name(name)


def test_simple_yaml_runs_unchanged():
    printed = values(run(tool("run_experiment"), EXAMPLES / "simple.yaml"))
    assert (printed["can_recommend"], printed["gpus"], printed["workers"], printed["valid"]) == ("1", "2", "1", "True")


def test_direct_call_runs_unchanged():
    assert (
        run(sys.executable, EXAMPLES / "direct_call.py")
        == "{'can_recommend': 1, 'gpus': 2, 'workers': 1, 'outcome': 'ok'}\n"
    )


def test_through_ado_runs_unchanged():
    printed = values(run(sys.executable, EXAMPLES / "through_ado.py"))
    assert (printed["can_recommend"], printed["gpus"], printed["workers"]) == ("1", "2", "1")


def test_describe_explains_every_property():
    printed = " ".join(run(tool("ado"), "describe", "experiment", "min_gpu_recommender").split())
    properties = [field for field in Workload.model_fields if field != "per_device_train_batch_size"]
    for words in (
        *(Workload.model_fields[f].description for f in properties),
        "can_recommend (1, or 0",
        TRAINING_STACK,
    ):
        assert words in printed, words


def test_the_published_path_of_the_sweep_reaches_the_same_files():
    assert (EXAMPLES / "sweep" / "space.yaml").samefile(ROOT / "sweep" / "examples" / "space.yaml")
    space = yaml.safe_load((EXAMPLES / "sweep" / "space.yaml").read_text())
    size = 1
    for dimension in space["entitySpace"]:
        size *= len(dimension["propertyDomain"]["values"])
    assert size == 3960


def test_missing_and_unknown_arguments_are_named(job):
    for field in job:
        with pytest.raises(ValueError, match=f"{field}: is required"):
            min_gpu_recommender(**{k: v for k, v in job.items() if k != field})
    with pytest.raises(ValueError, match="max_gpu: no such field"):
        min_gpu_recommender(**job, max_gpu=4)
    assert min_gpu_recommender(*job.values()) == min_gpu_recommender(**job)
    with pytest.raises(ValueError, match="method: given twice"):
        min_gpu_recommender("llama-7b", "lora", method="full")
    fields = len(inspect.signature(min_gpu_recommender).parameters)
    with pytest.raises(ValueError, match=f"{fields + 1} values for the {fields} fields"):
        min_gpu_recommender(*range(fields + 1))
    with pytest.raises(ValueError, match="per_device_train_batch_size: no such field; the fields are model_name, "):
        min_gpu_recommender(**job, per_device_train_batch_size=4)


def test_a_broken_installation_is_an_invalid_measurement_with_its_reason(tmp_path):
    shutil.copytree(ROOT / "autoconf", tmp_path / "autoconf")
    with (tmp_path / "autoconf" / "AutoGluonModels" / "1.1.0" / "predictor" / "learner.pkl").open("ab") as file:
        file.write(b"x")
    done = subprocess.run(
        [tool("run_experiment"), EXAMPLES / "simple.yaml"],
        capture_output=True, text=True, timeout=600, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert values(done.stdout)["valid"] == "False"
    assert "predictor/learner.pkl was altered" in " ".join(done.stdout.split())
    assert "can_recommend" not in done.stdout
