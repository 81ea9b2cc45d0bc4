"""A patch changes only the GPU counts of a manifest or an accelerate config."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    after = patched([(name, before)], layout).text
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


def test_a_manifest_among_other_objects_is_found() -> None:
    assert list(changes("pytorchjob_configmap.yaml", Layout(1, 1)).values()) == ["nvidia.com/gpu: 1"]


def test_an_accelerate_config_gets_processes_and_machines() -> None:
    assert list(changes("accelerate_fsdp2.yaml", Layout(8, 4)).values()) == [
        "num_machines: 4   # one node",
        "num_processes: 32  # its GPUs",
    ]


def test_an_accelerate_config_without_machines_has_one() -> None:
    text = "distributed_type: FSDP\nnum_processes: 2\n"
    assert patched([("a", text)], Layout(4, 1)).text == "distributed_type: FSDP\nnum_processes: 4\n"
    with pytest.raises(BadInput, match="a num_machines: is missing"):
        patched([("a", text)], Layout(4, 2))


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(["pytorchjob.yaml", "trainjob.yaml", "accelerate_fsdp1.yaml"]), LAYOUTS, LAYOUTS)
def test_patching_twice_is_patching_once(name: str, first: Layout, second: Layout) -> None:
    text = (JOBS / name).read_text()
    once = patched([(name, text)], second).text
    assert patched([(name, patched([(name, text)], first).text)], second).text == once
    assert len(list(yaml.safe_load_all(once))) == len(list(yaml.safe_load_all(text)))


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (
            "pytorchjob.yaml",
            '"--nproc_per_node", "8"',
            '"--nproc_per_node", "$(GPUS)"',
            "--patch changes only a number",
        ),
        ("pytorchjob.yaml", "--nnodes=4", "--nnodes=1:4", "'1:4': --patch changes only a number"),
        ("pytorchjob.yaml", "  nprocPerNode", "  elasticPolicy: {}\n  nprocPerNode", "spec.elasticPolicy"),
        ("trainjob.yaml", "--num_processes 12", "--num_processes $N", "'[$]N': --patch changes only a number"),
        ("trainjob.yaml", "--num_processes 12", "--num_processes", "has no number to change"),
        ("trainjob.yaml", "nvidia.com/gpu", "amd.com/gpu", "resourcesPerNode: has no nvidia.com/gpu"),
        ("trainjob.yaml", "    numNodes: 3\n", "", "spec.trainer.numNodes: is missing"),
        (
            "pytorchjob_configmap.yaml",
            "replicas: 1",
            "replicas: 1",
            "pytorchReplicaSpecs.Worker: is missing, and 5 workers need it",
        ),
        ("trainjob.yaml", "--num_machines 3", "", "several workers need accelerate's --num_machines"),
        ("trainjob.yaml", "--num_processes 12", "--config_file a.yaml", "add --num_processes"),
        ("trl_lora.yaml", "", "", "0 of trl_lora.yaml are"),
    ],
)
def test_a_count_that_cannot_be_changed_is_refused(name: str, old: str, new: str, message: str) -> None:
    text = (JOBS / name).read_text().replace(old, new) if old else (JOBS / name).read_text()
    with pytest.raises(BadInput, match=message):
        patched([(name, text)], Layout(2, 5))


def values_in(text: str) -> dict[tuple, object]:
    """The values of a YAML text by their paths, as PyYAML itself reads them."""

    def below(value: object, path: tuple) -> Iterator[tuple[tuple, object]]:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        yield from ((path, value),) if not isinstance(value, dict | list) else ()
        for name, item in items:
            yield from below(item, (*path, name))

    return dict(below(list(yaml.safe_load_all(text)), ()))


def changed_values(text: str, layout: Layout) -> dict[object, object]:
    """The values that a patch changes, by the last part of their paths."""
    before, after = values_in(text), values_in(patched([("job", text)], layout).text)
    assert before.keys() == after.keys()
    return {path[-1]: after[path] for path in before if before[path] != after[path]}


def with_change(name: str, old: str, new: str) -> str:
    text = (JOBS / name).read_text()
    assert old in text
    return text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("pytorchjob_configmap.yaml", '"max_seq_length"', '"num_processes"', "num_processes counts GPUs as well"),
        ("pytorchjob.yaml", "spec:", "spec:\n  runPolicy: {schedulingPolicy: {minResources: {nvidia.com/gpu: 32}}}",
         "minResources.nvidia.com/gpu: also counts GPUs"),
        ("pytorchjob.yaml", "- name: MODEL", "- {name: NUM_GPUS, value: '8'}\n                - name: MODEL",
         "NUM_GPUS counts GPUs"),
        ("pytorchjob.yaml", "tuning/sft_trainer.py", "--devices 8", "'--devices 8' counts GPUs"),
        ("pytorchjob.yaml", "- name: log", "- name: log\n              resources: {limits: {nvidia.com/gpu: 1}}",
         "2 containers have resources of nvidia.com/gpu"),
        ("trainjob.yaml", "numNodes: 3", "numNodes: 0x3", "numNodes would not change"),
        ("trainjob.yaml", "cd /work", "CUDA_VISIBLE_DEVICES=0,1", "'CUDA_VISIBLE_DEVICES=0,1' counts GPUs"),
        ("trainjob.yaml", "--use_fsdp", "--gpu_ids=0,1", "'--gpu_ids=0,1' counts GPUs"),
        ("trainjob.yaml", "accelerate", "mpirun -np 4 accelerate", "'mpirun' counts GPUs"),
        ("trainjob.yaml", "--use_fsdp", "--multi_gpu", "accelerate refuses --multi_gpu on one GPU"),
        ("trainjob.yaml", "numNodes: 3", "numNodes: three", "numNodes: 'three': --patch changes only a number"),
    ],
)  # fmt: skip
def test_every_count_of_a_manifest_changes_or_none_does(name: str, old: str, new: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        patched([("job", with_change(name, old, new))], Layout(1, 1))


def test_one_worker_is_needed_for_torchruns_standalone() -> None:
    text = with_change("pytorchjob.yaml", "--nnodes=4", "--standalone")
    assert changed_values(text, Layout(2, 1))["replicas"] == 0
    with pytest.raises(BadInput, match="torchrun's --standalone is for one worker"):
        patched([("job", text)], Layout(2, 2))


def test_deepspeeds_counts_change() -> None:
    launch = "accelerate launch --use_fsdp --fsdp_version 2 --num_machines 3 --num_processes 12"
    text = with_change("trainjob.yaml", launch, "deepspeed --num_nodes 3 --num_gpus=4")
    assert "deepspeed --num_nodes 2 --num_gpus=8" in str(changed_values(text, Layout(8, 2))[0])


def test_a_config_that_a_command_writes_is_not_overlooked() -> None:
    text = with_change("trainjob.yaml", "set -e;", 'printf "gpu_ids: 0,1" > a.yaml;')
    with pytest.raises(BadInput, match="'gpu_ids: 0,1' counts GPUs"):
        patched([("job", text)], Layout(2, 2))


def test_gang_scheduling_waits_for_as_many_pods_as_there_are() -> None:
    text = with_change("pytorchjob.yaml", "spec:", "spec:\n  runPolicy: {schedulingPolicy: {minAvailable: 4}}")
    assert changed_values(text, Layout(8, 2))["minAvailable"] == 2


@pytest.mark.parametrize("option", ["--nproc", "--nproc-per", "--np"])
def test_torchruns_abbreviated_options_count(option: str) -> None:
    text = with_change("pytorchjob.yaml", "--nproc_per_node", option)
    assert 4 not in changed_values(text, Layout(8, 4)) and changed_values(text, Layout(2, 4))[3] == "2"


@pytest.mark.parametrize(
    ("ids", "gpus", "after"),
    [("0,1,2,3", 2, "0,1"), ("0,1", 1, "0"), ("0,1", 4, "0,1,2,3"), ("4,5", 1, "4"), ("all", 4, "all"),
     ("0", 2, "0,1")],
)  # fmt: skip
def test_gpu_ids_change_with_the_processes(ids: str, gpus: int, after: str) -> None:
    text = f"distributed_type: FSDP\nnum_machines: 1\nnum_processes: {len(ids.split(','))}\ngpu_ids: {ids}\n"
    assert yaml.safe_load(patched([("a", text)], Layout(gpus, 1)).text)["gpu_ids"] == after


def test_gpu_ids_that_cannot_be_derived_are_an_error() -> None:
    config = "distributed_type: {}\nnum_processes: 2\ngpu_ids: 4,5\n"
    with pytest.raises(BadInput, match="gpu_ids: '4,5' names fewer than 4 GPUs; name them, or all"):
        patched([("a", config.format("FSDP"))], Layout(4, 1))
    with pytest.raises(BadInput, match="accelerate refuses one GPU under distributed_type MULTI_GPU"):
        patched([("a", config.format("MULTI_GPU"))], Layout(1, 1))


@pytest.mark.parametrize(
    ("script", "word"),
    [
        ("accelerate launch --num_processes 8 sft.py", "--num_processes"),
        ("# --num_processes\nCUDA_VISIBLE_DEVICES=0,1 accelerate launch sft.py", "CUDA_VISIBLE_DEVICES=0,1"),
        ("#!/bin/bash\n#SBATCH --gres=gpu:8\naccelerate launch sft.py", "--gres"),
        ("torchrun --nproc-per-node=$N sft.py", "--nproc-per-node"),
    ],
)
def test_a_script_that_counts_gpus_prevents_patching_a_config(script: str, word: str) -> None:
    config = (JOBS / "accelerate_fsdp2.yaml").read_text()
    with pytest.raises(BadInput, match=f"^run.sh:{script.count(chr(10)) + 1}|2: {word} counts GPUs in a script"):
        patched([("run.sh", script), ("a.yaml", config)], Layout(1, 1))
    assert patched([("run.sh", "accelerate launch sft.py"), ("a.yaml", config)], Layout(1, 1)).file == "a.yaml"


def test_two_files_that_count_are_refused_unless_the_command_overrides_one() -> None:
    config = (JOBS / "accelerate_fsdp2.yaml").read_text()
    manifest = (JOBS / "trainjob.yaml").read_text()
    assert patched([("job", manifest), ("a.yaml", config)], Layout(2, 2)).file == "job"
    with pytest.raises(BadInput, match=r"a\.yaml:14 gpu_ids: gpu_ids counts GPUs as well"):
        patched([("job", manifest), ("a.yaml", config + "gpu_ids: 0,1\n")], Layout(2, 2))
    with pytest.raises(BadInput, match=r"a\.yaml:4 num_machines: num_machines counts GPUs as well"):
        patched([("job", (JOBS / "pytorchjob.yaml").read_text()), ("a.yaml", config)], Layout(2, 2))


def test_json_with_tabs_is_patched_in_place() -> None:
    text = '{\n\t"num_machines":\t1,\n\t"num_processes": 8,\t"name": "\\u00fc 8"\n}\n'
    assert patched([("a", text)], Layout(2, 1)).text == text.replace("8,", "2,")


def test_gpus_before_are_those_of_all_workers() -> None:
    for name, gpus in (("pytorchjob.yaml", 32), ("trainjob.yaml", 12), ("pytorchjob_configmap.yaml", 2)):
        assert patched([(name, (JOBS / name).read_text())], Layout(4, 1)).gpus_before == gpus


def test_characters_of_several_bytes_and_line_ends_stay() -> None:
    text = "# 🚀 ü\r\nnum_processes: 8\r\nnum_machines: 1 # é\r\n"
    assert patched([("a", text)], Layout(16, 2)).text == text.replace("8", "32").replace("1 #", "2 #")


def test_a_launcher_that_counts_by_itself_is_left_alone() -> None:
    text = (JOBS / "pytorchjob.yaml").read_text().replace('"--nproc_per_node", "8"', '"--nproc_per_node", auto')
    assert '"--nproc_per_node", auto' in patched([("job", text)], Layout(2, 2)).text
    text = (JOBS / "trainjob.yaml").read_text().replace("accelerate launch", "torchrun --nproc-per-node=gpu")
    assert "--nproc-per-node=gpu" in patched([("job", text)], Layout(2, 2)).text


# --- the command ------------------------------------------------------------------------------------------------------


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["recommend", *arguments])


def answer(result: Result) -> dict[str, Any]:
    row = json.loads(result.stdout)
    return {column: row[column] for column in ("can_recommend", "gpus", "workers", "reason")}


def test_the_command_says_what_it_read_and_answers_as_for_options() -> None:
    result = run("--job", str(JOBS / "trl_lora.yaml"), "--gpu-model=NVIDIA-A100-SXM4-80GB", "--lora-r=8", "--json")
    by_options = run(
        "--model-name=meta-llama/Llama-3.1-8B", "--method=lora", "--gpu-model=NVIDIA-A100-SXM4-80GB", "--stack=trl",
        "--tokens-per-sample=2048", "--per-device-train-batch-size=4", "--gradient-accumulation-steps=2", "--lora-r=8",
        "--lora-targets=all-linear", "--torch-dtype=bfloat16", "--json",
    )  # fmt: skip
    assert result.exit_code == 0
    assert answer(result) == answer(by_options)
    assert f"ignored: {JOBS / 'trl_lora.yaml'}:12 lora_r: set by an option" in result.stderr.splitlines()
    assert any(line.startswith("assumed: ") for line in result.stderr.splitlines())


def test_the_command_prints_the_manifest_for_its_answer() -> None:
    job = ["--job", str(JOBS / "pytorchjob.yaml"), "--method=full", "--per-device-train-batch-size=1", *SEVERAL_WORKERS]
    result = run(*job, "--patch")
    row = answer(run(*job, "--json"))
    assert int(row["workers"]) > 1
    text = (JOBS / "pytorchjob.yaml").read_text()
    assert result.stdout == patched([("job", text)], Layout(int(row["gpus"]), int(row["workers"]))).text
    assert result.exit_code == 0
    gpus = int(row["gpus"]) * int(row["workers"])
    assert (
        f"pytorchjob.yaml: 32 -> {gpus} GPUs: the global batch changes from 32 to {gpus} samples"
        in result.stderr.splitlines()[0]
    )


def test_a_byte_order_mark_and_line_ends_stay(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbfdistributed_type: FSDP\r\nnum_processes: 8\r\n"
    (tmp_path / "a.yaml").write_bytes(data)
    job = ["--model-name=llama-7b", "--method=lora", "--gpu-model=L40S", "--tokens-per-sample=512",
           "--per-device-train-batch-size=1", "--job", str(tmp_path / "a.yaml"), "--patch"]  # fmt: skip
    assert run(*job).stdout_bytes == data.replace(b"8\r", b"1\r")
    assert run(*job, "--output", str(tmp_path / "b.yaml")).stdout_bytes == b""
    assert (tmp_path / "b.yaml").read_bytes() == data.replace(b"8\r", b"1\r")


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


def test_several_machines_without_an_address_are_noted() -> None:
    config = "num_processes: 8\nnum_machines: 1\n"
    (line,) = patched([("a.yaml", config)], Layout(4, 2)).notes
    assert line.startswith("a.yaml:2 num_machines: several machines need main_process_ip")
    assert patched([("a.yaml", config)], Layout(4, 1)).notes == ()
    assert patched([("a.yaml", f"{config}main_process_ip: 10.0.0.1\n")], Layout(4, 2)).notes == ()
