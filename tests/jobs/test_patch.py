"""The counts of GPUs in a manifest or an accelerate config change, and nothing else does."""

import csv
import io
import re
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from autoconf.cli.main import app
from autoconf.errors import BadInput
from autoconf.jobs.importers.patch import Layout, patched

JOBS = Path(__file__).parents[1] / "data" / "job_files"
SEVERAL_WORKERS = ["--gpus-per-worker=1", "--max-gpus=32"]
LAYOUTS = st.builds(Layout, st.integers(1, 16), st.integers(1, 200))


def changes(name: str, layout: Layout) -> dict[int, str]:
    """The lines that a patch changes, by their numbers."""
    before = (JOBS / name).read_text()
    after = patched([(name, before)], layout)
    pairs = list(zip(before.splitlines(keepends=True), after.splitlines(keepends=True), strict=True))
    for old, new in pairs:
        assert re.sub(r"\d+", "", old) == re.sub(r"\d+", "", new)  # comments, quotes and order stay
    return {number: new.strip() for number, (old, new) in enumerate(pairs, 1) if old != new}


def test_a_pytorchjob_gets_replicas_gpus_and_its_launchers_counts() -> None:
    assert list(changes("pytorchjob.yaml", Layout(4, 2)).values()) == [
        'nprocPerNode: "4"',
        'command: ["torchrun", --nnodes=2, "--nproc_per_node", "4"]',
        "nvidia.com/gpu: 4",
        'requests: {nvidia.com/gpu: "4", memory: 8Gi}',
        "replicas: 1",
    ]


def test_one_worker_is_a_master_alone() -> None:
    assert list(changes("pytorchjob.yaml", Layout(8, 1)).values()) == [
        'command: ["torchrun", --nnodes=1, "--nproc_per_node", "8"]',
        "replicas: 0",
    ]


def test_a_trainjob_gets_nodes_gpus_and_its_shells_counts() -> None:
    assert list(changes("trainjob.yaml", Layout(8, 2)).values()) == [
        "numNodes: 2",
        "numProcPerNode: 8",
        "nvidia.com/gpu: 8",
        "nvidia.com/gpu: 8",
        "accelerate launch --use_fsdp --fsdp_version 2 --num_machines 2 --num_processes 16 \\",
    ]


def test_a_manifest_beside_other_objects_is_found() -> None:
    assert list(changes("pytorchjob_configmap.yaml", Layout(1, 1)).values()) == ["nvidia.com/gpu: 1"]


def test_an_accelerate_config_gets_processes_and_machines() -> None:
    assert list(changes("accelerate_fsdp2.yaml", Layout(8, 4)).values()) == [
        "num_machines: 4   # one node",
        "num_processes: 32  # its GPUs",
    ]


def test_an_accelerate_config_without_machines_has_one() -> None:
    text = "distributed_type: FSDP\nnum_processes: 2\n"
    assert patched([("a", text)], Layout(4, 1)) == "distributed_type: FSDP\nnum_processes: 4\n"
    with pytest.raises(BadInput, match="a, num_machines: is not there to be changed"):
        patched([("a", text)], Layout(4, 2))


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(["pytorchjob.yaml", "trainjob.yaml", "accelerate_fsdp1.yaml"]), LAYOUTS, LAYOUTS)
def test_patching_twice_is_patching_once(name: str, first: Layout, second: Layout) -> None:
    text = (JOBS / name).read_text()
    once = patched([(name, text)], second)
    assert patched([(name, patched([(name, text)], first))], second) == once
    assert len(list(yaml.safe_load_all(once))) == len(list(yaml.safe_load_all(text)))


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("pytorchjob.yaml", '"--nproc_per_node", "8"', '"--nproc_per_node", "$(GPUS)"', "only a number can be changed"),
        ("pytorchjob.yaml", "--nnodes=4", "--nnodes=1:4", "'1:4': only a number can be changed"),
        ("pytorchjob.yaml", "  nprocPerNode", "  elasticPolicy: {}\n  nprocPerNode", "spec.elasticPolicy"),
        ("trainjob.yaml", "--num_processes 12", "--num_processes $N", "'[$]N': only a number can be changed"),
        ("trainjob.yaml", "--num_processes 12", "--num_processes", "has no number to change"),
        ("trainjob.yaml", "nvidia.com/gpu", "amd.com/gpu", "resourcesPerNode: has no nvidia.com/gpu"),
        ("trainjob.yaml", "    numNodes: 3\n", "", "spec.trainer.numNodes: is not there"),
        ("pytorchjob_configmap.yaml", "replicas: 1", "replicas: 1", "pytorchReplicaSpecs.Worker: is needed"),
        ("pytorchjob_configmap.yaml", '"max_seq_length"', '"num_processes"', "a ConfigMap counts processes"),
        ("trainjob.yaml", "--num_machines 3", "", "several workers need accelerate's --num_machines"),
        ("trainjob.yaml", "--num_processes 12", "--config_file a.yaml", "say --num_processes as well"),
        ("trl_lora.yaml", "", "", "0 of trl_lora.yaml are"),
    ],
)
def test_a_count_that_cannot_be_changed_is_refused(name: str, old: str, new: str, message: str) -> None:
    text = (JOBS / name).read_text().replace(old, new) if old else (JOBS / name).read_text()
    with pytest.raises(BadInput, match=message):
        patched([(name, text)], Layout(2, 5))


def test_characters_of_several_bytes_and_line_ends_stay() -> None:
    text = "# 🚀 ü\r\nnum_processes: 8\r\nnum_machines: 1 # é\r\n"
    assert patched([("a", text)], Layout(16, 2)) == text.replace("8", "32").replace("1 #", "2 #")


def test_a_launcher_that_counts_by_itself_is_left_alone() -> None:
    text = (JOBS / "pytorchjob.yaml").read_text().replace('"--nproc_per_node", "8"', '"--nproc_per_node", auto')
    assert '"--nproc_per_node", auto' in patched([("job", text)], Layout(2, 2))
    text = (JOBS / "trainjob.yaml").read_text().replace("accelerate launch", "torchrun --nproc-per-node=gpu")
    assert "--nproc-per-node=gpu" in patched([("job", text)], Layout(2, 2))


# --- the command ------------------------------------------------------------------------------------------------------


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["recommend", *arguments])


def answer(result: Result) -> dict[str, str]:
    (row,) = csv.DictReader(io.StringIO(result.stdout))
    return {column: row[column] for column in ("can_recommend", "gpus", "workers", "reason")}


def test_the_command_says_what_it_read_and_answers_as_for_options() -> None:
    result = run("--job", str(JOBS / "trl_lora.yaml"), "--gpu-model=NVIDIA-A100-SXM4-80GB", "--lora-r=8")
    by_options = run(
        "--model-name=meta-llama/Llama-3.1-8B", "--method=lora", "--gpu-model=NVIDIA-A100-SXM4-80GB", "--stack=trl",
        "--tokens-per-sample=2048", "--per-device-train-batch-size=4", "--gradient-accumulation-steps=2", "--lora-r=8",
        "--lora-targets=all-linear", "--torch-dtype=bfloat16",
    )  # fmt: skip
    assert result.exit_code == 0
    assert answer(result) == answer(by_options)
    assert f"ignored: {JOBS / 'trl_lora.yaml'} lora_r: an option says it" in result.stderr.splitlines()
    assert any(line.startswith("assumed: ") for line in result.stderr.splitlines())


def test_the_command_prints_the_manifest_for_its_answer() -> None:
    job = ["--job", str(JOBS / "pytorchjob.yaml"), "--method=full", "--per-device-train-batch-size=1", *SEVERAL_WORKERS]
    result = run(*job, "--patch")
    row = answer(run(*job))
    assert int(row["workers"]) > 1
    text = (JOBS / "pytorchjob.yaml").read_text()
    assert result.stdout == patched([("job", text)], Layout(int(row["gpus"]), int(row["workers"])))
    assert result.exit_code == 0


def test_without_a_recommendation_nothing_is_patched() -> None:
    result = run("--job", str(JOBS / "pytorchjob.yaml"), "--patch", "--tokens-per-sample=100000000")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.splitlines()[-1].startswith("no recommendation: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--patch"], "--patch: needs --job"),
        (["--csv", "a.csv", "--job", "b.yaml"], "--csv and --job or --patch exclude each other"),
        (["--job", "no-such.yaml"], "no-such.yaml: cannot read it: No such file or directory"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout, result.stderr.splitlines()) == (2, "", [message])
