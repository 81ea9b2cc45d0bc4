"""Snippets for ado 1.x run unchanged with the installed ado; the matrix has both major versions."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from autoconf.experiments import largest_batch_recommender

from ado.modules.actuators.registry import ActuatorRegistry
from ado.schema.reference import ExperimentReference

DIRECT = """
from orchestrator.schema.reference import (
    ExperimentReference,
)
from orchestrator.schema.point import SpacePoint
from orchestrator.modules.actuators.registry import ActuatorRegistry
from autoconf.min_gpu_recommender import (
    min_gpu_recommender,
)

configuration = {
    "model_name": "llama-7b",
    "method": "lora",
    "gpu_model": "NVIDIA-A100-80GB-PCIe",
    "tokens_per_sample": 8192,
    "batch_size": 16,
    "model_version": "1.1.0",
}

measured_properties=min_gpu_recommender(**configuration)
print(measured_properties)
"""

THROUGH_ADO = """
from orchestrator.schema.reference import (
    ExperimentReference,
)
from orchestrator.schema.point import SpacePoint
from orchestrator.modules.actuators.registry import ActuatorRegistry
from orchestrator.utilities.run_experiment import local_execution_closure

configuration = {
    "model_name": "llama-7b",
    "method": "lora",
    "gpu_model": "NVIDIA-A100-80GB-PCIe",
    "tokens_per_sample": 8192,
    "batch_size": 16,
    "model_version": "1.1.0",
}

entity = SpacePoint.model_validate({"entity":configuration}).to_entity()
experiment = ActuatorRegistry().experimentForReference(
    ExperimentReference(
        actuatorIdentifier="custom_experiments",
        experimentIdentifier="min_gpu_recommender",
    )
)

request=local_execution_closure(registry=ActuatorRegistry())(reference=experiment.reference, entity=entity)
print(request.measurements[0].series_representation(output_format="target"))
"""


@pytest.mark.parametrize("snippet", [DIRECT, THROUGH_ADO], ids=["direct", "through ado"])
def test_the_published_snippets_run_word_for_word(snippet):
    done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    if snippet is DIRECT:
        assert done.stdout.endswith("{'can_recommend': 1, 'gpus': 2, 'workers': 1, 'outcome': 'ok'}\n")
    else:
        printed = {line.split()[0]: line.split()[-1] for line in done.stdout.splitlines() if len(line.split()) >= 2}
        assert (printed["can_recommend"], printed["gpus"], printed["workers"]) == ("1", "2", "1")


def test_every_experiment_is_known_to_ado_and_answers_a_plain_call():
    names = {
        "min_gpu_recommender", "avoid_oom_recommender", "largest_batch_recommender", "largest_sample_recommender",
        "gpu_model_recommender", "memory_estimator", "throughput_estimator",
    }  # fmt: skip
    registry = ActuatorRegistry()
    for name in names:
        reference = ExperimentReference(actuatorIdentifier="custom_experiments", experimentIdentifier=name)
        assert registry.experimentForReference(reference).identifier == name
    declared = importlib.metadata.entry_points(group="ado.custom_experiments")
    assert names == {one.name for one in declared if one.value.startswith("autoconf.")}
    found = largest_batch_recommender(
        model_name="llama-7b", method="lora", gpu_model="NVIDIA-A100-80GB-PCIe", tokens_per_sample=8192, number_gpus=2,
        model_version="2.0.0",
    )  # fmt: skip
    assert found == {"can_recommend": 1, "per_device_train_batch_size": 10, "batch_size": 20, "outcome": "ok"}


def test_both_names_of_ado_are_the_same_modules():
    check = (
        "import autoconf.experiments.ado_compat, ado.schema.point, orchestrator.schema.point, pickle\n"
        "from ado.schema.point import SpacePoint as A\n"
        "from orchestrator.schema.point import SpacePoint as B\n"
        "assert A is B and ado.schema.point is orchestrator.schema.point\n"
        "assert ado.schema.point.__spec__.name == ado.schema.point.__name__\n"
        "assert pickle.loads(pickle.dumps(A(entity={'a': 1}))) == B(entity={'a': 1})\n"
    )
    subprocess.run([sys.executable, "-c", check], check=True, timeout=600)


def test_importing_the_operator_registers_it_without_a_word():
    """Ray imports it in processes that have not imported this package."""
    check = (
        "import autoconf.experiments.batched_sweep\n"
        "from ado.modules.operators.collections import explore\n"
        "assert 'batched_sweep' in explore.operators\n"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_space_is_made_swept_and_exported_from_the_command_line(ado_context, job, monkeypatch):
    """Commands of ado crash with some versions of typer that ado allows; no process may log an error."""
    points = {**{field: [value] for field, value in job.items()}, "batch_size": [1, 16], "method": ["lora", "qlora"],
              "stack": ["reference"], "lora_r": [4], "mixed_precision": ["no"]}  # fmt: skip
    ado_context.create_space(
        {
            "entitySpace": [{"identifier": k, "propertyDomain": {"values": v}} for k, v in points.items()],
            "experiments": [
                {"actuatorIdentifier": "custom_experiments", "experimentIdentifier": "min_gpu_recommender"}
            ],
        }
    )
    sweep = Path(__file__).parents[2] / "sweep"
    operation = str(sweep / "examples" / "operation-batched.yaml")
    command = ado_context.command("create", "operation", "-f", operation, "--use-latest", "space")
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "ERROR" not in done.stdout + done.stderr, done.stdout + done.stderr
    what = "entities" if importlib.metadata.version("ado-core").startswith("1.") else "measurements"
    export = f"ado show {what} space --use-latest -o csv --output-file measurements.csv"
    assert export in (sweep / "README.md").read_text(encoding="utf-8")
    monkeypatch.chdir(ado_context.folder)
    ado_context.ado(*export.split()[1:])
    table = pd.read_csv("measurements.csv")
    known = table[table["can_recommend"] == 1]
    assert dict(zip(known["batch_size"], known["gpus"], strict=True)) == {1: 1, 16: 2}
    assert known["reason"].isna().all()
    assert set(table.loc[table["can_recommend"] == 0, "reason"]) == {
        "method 'qlora' is not in the domain of version 1.1.0, which has full and lora"
    }
