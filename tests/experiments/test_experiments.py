"""The other ado experiments: their lists in ado, examples, plain calls, and one run on Ray."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import autoconf
from autoconf import cli, experiments
from autoconf.jobs.job import (
    DROPOUT,
    FLAGS,
    GPU_MEMORY,
    IMAGES,
    IN_GIB,
    NAMES,
    NUMBERS,
    TRAINING_STACK,
    Workload,
    choices,
)
from autoconf.jobs.queries import ALL_ARGUMENTS, ARGUMENTS, RUN_LENGTH
from autoconf.min_gpu_recommender import min_gpu_recommender
from autoconf.predictor import registry

from ado.modules.actuators.registry import ActuatorRegistry
from ado.schema.domain import PropertyDomain
from ado.schema.point import SpacePoint
from ado.schema.reference import ExperimentReference

ROOT = Path(__file__).parents[2]
# Examples for released versions: my-job.yaml needs a user version (test_your_own.py); the others are not entities.
EXAMPLES = sorted(
    path for path in (ROOT / "examples").glob("*.yaml") if "\nentity:" in path.read_text() and path.stem != "my-job"
)
JOB = ("model_name", "method", "gpu_model", "tokens_per_sample")
PARTS = ("weights", "gradients", "optimizer", "gathered", "activations", "fragmentation", "reserve")
LAYOUT = ["gpus_per_worker", "max_gpus"]
TRAINING = list(Workload.model_fields)[list(Workload.model_fields).index("gradient_accumulation_steps") :]
# The required properties of each experiment, its optional ones before the settings of the stack, and its outputs.
DECLARED = {
    "min_gpu_recommender": ((*JOB, "batch_size"), LAYOUT, ["can_recommend", "gpus", "workers", "reason", "outcome"]),
    "avoid_oom_recommender": (
        (*JOB, "per_device_train_batch_size", "number_gpus"), LAYOUT,
        ["can_recommend", "gpus", "workers", "reason", "outcome"],
    ),
    "largest_batch_recommender": (
        (*JOB, "number_gpus"), LAYOUT[:1],
        ["can_recommend", "per_device_train_batch_size", "batch_size", "reason", "outcome"],
    ),
    "largest_sample_recommender": (
        (*JOB[:3], "batch_size", "number_gpus"), LAYOUT[:1],
        ["can_recommend", "tokens_per_sample", "reason", "outcome"],
    ),
    "gpu_model_recommender": (
        ("model_name", "method", "tokens_per_sample", "batch_size"), LAYOUT,
        ["can_recommend", "gpu_model", "gpus", "workers", "cost_per_hour", "tokens_per_second", "hours", "cost",
         "cost_per_million_tokens", "reason", "outcome"],
    ),
    "memory_estimator": (
        (*JOB, "batch_size", "number_gpus"), LAYOUT[:1],
        ["fits", "probability", "peak_memory_gib", "peak_reserved_gib", "needed_memory_gib", "usable_memory_gib",
         "headroom_gib", "weights_gib", "gradients_gib", "optimizer_gib", "gathered_gib", "activations_gib",
         "fragmentation_gib", "reserve_gib", "host_memory_gib", "reason", "outcome"],
    ),
    "throughput_estimator": (
        (*JOB, "batch_size", "number_gpus"), ["gpus_per_worker"],
        ["fits", "tokens_per_second", "tokens_per_second_low", "tokens_per_second_high", "step_seconds",
         "model_flops_utilization", "limit", "hours", "cost", "reason", "outcome"],
    ),
}  # fmt: skip


def experiment(name):
    reference = ExperimentReference(actuatorIdentifier="custom_experiments", experimentIdentifier=name)
    return ActuatorRegistry().experimentForReference(reference)


def function(name):
    return min_gpu_recommender if name == "min_gpu_recommender" else getattr(experiments, name)


def entity_of(example: Path):
    text = yaml.safe_load(example.read_text(encoding="utf-8"))
    (asked,) = text["experiments"]
    return asked["experimentIdentifier"], text["entity"]


@pytest.mark.parametrize("name", DECLARED)
def test_ado_lists_the_properties_and_outputs_of_an_experiment(name):
    required, more, outputs = DECLARED[name]
    listed = experiment(name)
    # One ranks the types that have a name; images are a part of the sample that the other looks for.
    left_out = {"gpu_model_recommender": {GPU_MEMORY}, "largest_sample_recommender": {IMAGES}}.get(name, set())
    assert [one.identifier for one in listed.requiredProperties] == [*required, "model_version"]
    assert [one.identifier for one in listed.optionalProperties] == [
        *more,
        *(field for field in TRAINING if field != "even_layouts" or "max_gpus" in more if field not in left_out),
        *(RUN_LENGTH if name in ("throughput_estimator", "gpu_model_recommender") else ()),
    ]
    assert [one.identifier for one in listed.targetProperties] == [*outputs, "notes"]
    assert TRAINING_STACK in listed.metadata["description"]
    for one in (*listed.requiredProperties, *listed.optionalProperties):
        field = one.identifier
        assert one.metadata["description"] == (ALL_ARGUMENTS.get(field) or Workload.model_fields[field].description)
    defaults = {one.property.identifier: one.value for one in listed.defaultParameterization}
    assert defaults.get("max_gpus") == ({"avoid_oom_recommender": 64}.get(name, 8) if "max_gpus" in more else None)


def empty(field: str) -> list[str]:
    """The value of a setting that is left to the stack; the stack itself has no such value."""
    return [] if field == "stack" else [""]


@pytest.mark.parametrize("name", DECLARED)
def test_ado_lists_categories_and_whole_numbers(name):
    """Names list their values but are open, because user versions and other spellings must be accepted."""
    listed = experiment(name)
    domains = {one.identifier: one.propertyDomain for one in (*listed.requiredProperties, *listed.optionalProperties)}
    for field, domain in domains.items():
        if field in (*NUMBERS, *ARGUMENTS) and field not in ("lora_r", IMAGES):
            assert (domain.variableType.value, domain.interval) == ("DISCRETE_VARIABLE_TYPE", 1)
            assert PropertyDomain(values=[1, 8, 4096]).isSubDomain(domain)
            assert domain.valueInDomain(8192.0) and not domain.valueInDomain(0) and not domain.valueInDomain(1.5)
        else:
            assert domain.variableType.value == "OPEN_CATEGORICAL_VARIABLE_TYPE" and len(domain.values) > 1
            assert domain.valueInDomain("another") or field == "even_layouts"
            if field not in NAMES and field not in ("lora_r", IMAGES, *FLAGS, DROPOUT, *IN_GIB, *RUN_LENGTH):
                assert [*domain.values] == [*empty(field), *choices(field)]
    models = {model for version in registry.RELEASED for model in registry.card(version).domain.models}
    assert models == {*domains["model_name"].values}
    assert {"full", "lora", "qlora"} == {*domains["method"].values}
    assert {*registry.RELEASED} == {*domains["model_version"].values}


@pytest.mark.parametrize("name", DECLARED)
def test_the_signature_is_that_of_the_properties(name):
    listed = experiment(name)
    parameters = inspect.signature(function(name)).parameters
    assert list(parameters) == [one.identifier for one in (*listed.requiredProperties, *listed.optionalProperties)]
    defaults = {one.property.identifier: one.value for one in listed.defaultParameterization}
    for field, parameter in parameters.items():
        assert parameter.default == defaults.get(field, inspect.Parameter.empty)
        number = field in (*NUMBERS, *ALL_ARGUMENTS)
        whole = int | str if parameter.default == "" else int
        assert parameter.annotation == (float | str if field in (*IN_GIB, DROPOUT) else whole if number else str)


def test_the_published_signature_is_unchanged():
    published = (
        "(model_name: str, method: str, gpu_model: str, tokens_per_sample: int, batch_size: int, model_version: str, "
        "gpus_per_worker: int = 8, max_gpus: int = 8, gradient_accumulation_steps: int = 4, stack: str = 'reference', "
        "optim: str = '', torch_dtype: str = '', adapter_dtype: str = '', mixed_precision: str = '', "
        "gradient_checkpointing: str = '', loss: str = '', sharding: str = '', lora_r: int | str = '', "
        "lora_targets: str = '', even_layouts: str = False"
    )
    assert str(inspect.signature(min_gpu_recommender)).startswith(published)


def test_there_is_an_example_of_every_experiment():
    assert {entity_of(example)[0] for example in EXAMPLES} == set(DECLARED)


def test_the_table_of_queries_has_every_experiment_with_its_example_its_function_and_its_command():
    page = ROOT / "docs" / "guides" / "queries.md"
    text = page.read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("| \n").split(" | ")]
        for line in text.splitlines()
        if "](../../examples/" in line
    ]
    rows = [row for row in rows if len(row) == 6]
    assert [row[0].strip("`") for row in rows] == list(DECLARED)
    for name, asked, outputs, python, command, example in (map(lambda cell: cell.strip("`"), row) for row in rows):
        required, _, gives = DECLARED[name]
        listed = re.findall(r"\w+", outputs.replace("the parts", " ".join(f"{part}_gib" for part in PARTS)))
        assert listed == gives
        assert {*re.findall(r"\w+_\w+", asked)} == {*required} ^ {*JOB}
        assert callable(getattr(autoconf, python.removeprefix("autoconf.")))
        assert command in [one.name for one in cli.app.registered_commands]
        assert entity_of(page.parent / re.findall(r"\((.*)\)", example)[0])[0] == name


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_examples_entity_is_valid_and_answered(example):
    name, entity = entity_of(example)
    listed = experiment(name)
    assert listed.validate_entity(SpacePoint.model_validate({"entity": entity}).to_entity(), verbose=True)
    answer = function(name)(**entity)
    assert answer[DECLARED[name][2][0]] == 1
    later = {"peak_reserved_gib", "fragmentation_gib", "host_memory_gib"}
    of_later_versions = later if entity["model_version"] == "2.0.0" else set()
    of_a_run = (
        {"hours", "cost"} if name == "gpu_model_recommender" else set()
    )  # the example does not say how long it is
    absent = {"reason", *of_later_versions, *of_a_run}
    given = [output for output in answer if output != "notes"]
    assert given == [output for output in DECLARED[name][2] if output not in absent]


def test_an_example_runs_unchanged():
    example = ROOT / "examples" / "memory-estimator.yaml"
    command = [Path(sys.executable).with_name("run_experiment"), example]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    printed = {line.split()[0]: line.split()[-1] for line in done.stdout.splitlines() if len(line.split()) >= 2}
    assert printed["valid"] == "True"
    answer = experiments.memory_estimator(**entity_of(example)[1])
    assert printed["outcome"] == answer.pop("outcome") == "ok"
    for output, value in answer.items():
        assert float(printed[output]) == pytest.approx(value, rel=1e-5, abs=1e-6), output


def test_the_direct_calls_run_unchanged():
    example = ROOT / "examples" / "direct_calls.py"
    done = subprocess.run([sys.executable, example], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    shown = re.findall(r"^ +# (.*)$", example.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(shown) == 5 and done.stdout.splitlines() == shown


@pytest.mark.parametrize("name", [name for name in DECLARED if name != "min_gpu_recommender"])
def test_missing_unknown_and_bad_arguments_are_named(name):
    ask = function(name)
    (entity,) = (entity for other, entity in map(entity_of, EXAMPLES) if other == name)
    for field in entity.keys() - {*RUN_LENGTH}:
        with pytest.raises(ValueError, match=f"{field}: is required"):
            ask(**{k: v for k, v in entity.items() if k != field})
    with pytest.raises(ValueError, match="workers: no such field; the fields are model_name, "):
        ask(**entity, workers=4)
    with pytest.raises(ValueError, match="model_name: given twice"):
        ask("llama-7b", **entity)
    with pytest.raises(ValueError, match=r"tokens_per_sample|per_device_train_batch_size|batch_size"):
        ask(**{**entity, "batch_size" if "batch_size" in entity else "tokens_per_sample": 0})
    run = {field: entity[field] for field in RUN_LENGTH if field in entity}  # after the settings of the stack
    ordered = [entity[field] for field in inspect.signature(ask).parameters if field in entity and field not in run]
    assert ask(*ordered, **run) == ask(**entity)
    refused = ask(**{**entity, "model_name": "gpt-9"})
    assert {*refused} - {"can_recommend"} == {"reason", "outcome"} and refused["outcome"] == "outside_domain"


def test_settings_that_exclude_each_other_are_named():
    (entity,) = (entity for name, entity in map(entity_of, EXAMPLES) if name == "largest_batch_recommender")
    with pytest.raises(ValueError, match="method 'full' and lora_r 8 exclude each other"):
        experiments.largest_batch_recommender(**{**entity, "method": "full", "lora_r": 8})


def test_versions_without_estimates_say_so():
    (entity,) = (entity for name, entity in map(entity_of, EXAMPLES) if name == "memory_estimator")
    assert experiments.memory_estimator(**{**entity, "model_version": "1.1.0"}) == {
        "reason": "version 1.1.0 has no estimates; the newest is 3.0.0",
        "outcome": "outside_domain",
    }
