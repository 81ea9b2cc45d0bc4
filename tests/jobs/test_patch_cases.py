"""``--patch`` changes the cases of tests/data/job_cases correctly, or refuses them."""

from pathlib import Path

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from autoconf.cli.main import app

CASES = Path(__file__).parents[1] / "data" / "job_cases"
JOB = [
    "--model-name=Qwen/Qwen2.5-7B", "--method=lora", "--tokens-per-sample=2048", "--per-device-train-batch-size=1",
    "--gpu-model=NVIDIA-A100-SXM4-80GB",
]  # fmt: skip


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["recommend", *arguments])


def patch(*names: str) -> Result:
    return run(*(option for name in names for option in ("--job", str(CASES / name))), *JOB, "--patch")


def changed_lines(name: str, result: Result) -> list[str]:
    assert result.exit_code == 0, result.stderr
    before, after = (CASES / name).read_text().splitlines(), result.stdout.splitlines()
    return [new.strip() for old, new in zip(before, after, strict=True) if old != new]


def test_an_anchor_and_its_alias_change_together() -> None:
    result = patch("anchor.yaml")
    command, limits = changed_lines("anchor.yaml", result)
    assert "--nproc_per_node=1," in command and limits == "limits: {nvidia.com/gpu: &gpu8 1}"
    assert "8 -> 1 GPUs: the global batch changes from 8 to 1 samples; gradient_accumulation_steps=8" in result.stderr


def test_an_alias_that_other_settings_share_is_written_out() -> None:
    result = patch("shared_alias.yaml")
    assert changed_lines("shared_alias.yaml", result)[0] == "replicas: 1"
    job = yaml.safe_load(result.stdout)["spec"]
    (container,) = job["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"]
    assert job["runPolicy"]["backoffLimit"] == container["resources"]["limits"]["cpu"] == 4
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container["command"][1:3] == ["--nnodes=1", "--nproc_per_node=1"]


def test_a_merged_command_is_not_changed_at_its_source() -> None:
    result = patch("merge.yaml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "merge.yaml:2 x-base.command[2] would change with the counts" in result.stderr


def test_gpu_ids_change_with_num_processes() -> None:
    assert changed_lines("gpuids.yaml", patch("gpuids.yaml")) == ["num_processes: 1", "gpu_ids: '0'"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("launch.sh",),
            "launch_acc.yaml:7 num_processes: counts GPUs as well; take it out, since the script counts them",
        ),
        (
            ("launch.sh", "launch_acc.yaml"),
            "launch.sh:1: --num_processes counts GPUs in a script, and another file counts",
        ),
    ],
)
def test_a_launcher_that_overrides_its_config_is_named(names: tuple[str, ...], message: str) -> None:
    result = patch(*names)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("job.yaml", ["command: [torchrun, --nproc_per_node=1, train.py, --config, configs/run.yaml]",
                      "resources: {limits: {nvidia.com/gpu: 1}}"]),
        ("trainjob.yaml", ["trainer: {numNodes: 1, resourcesPerNode: {limits: {nvidia.com/gpu: 1}}}"]),
        ("kind.yaml", ["resources: {limits: {nvidia.com/gpu: 1}}"]),
    ],
)  # fmt: skip
def test_a_manifest_whose_command_is_not_read_is_patched_for_a_job_given_by_options(name: str, lines: list) -> None:
    result = patch(name)
    assert changed_lines(name, result) == lines
    assert "GPUs: the global batch becomes 1/" in result.stderr
    answer = run("--job", str(CASES / name), *JOB, "--json")
    assert answer.exit_code == 0 and '"gpus": 1' in answer.stdout


@pytest.mark.parametrize("left_out", range(4))
@pytest.mark.parametrize("name", ["job.yaml", "trainjob.yaml"])
def test_the_error_for_a_manifest_with_an_unreadable_command_names_the_options(name: str, left_out: int) -> None:
    result = run("--job", str(CASES / name), *JOB[:left_out], *JOB[left_out + 1 :], "--patch")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1].endswith(f"give {JOB[left_out].split('=')[0]}")


def test_several_nodes_need_a_place_for_their_count() -> None:
    several = ["--gpus-per-worker=1", "--max-gpus=8", "--per-device-train-batch-size=8", "--method=full"]
    result = run("--job", str(CASES / "trainjob.yaml"), *JOB, *several, "--patch")
    assert "numNodes: 4" in result.stdout
    result = run("--job", str(CASES / "kind.yaml"), *JOB, *several, "--patch")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "a Job has one pod" in result.stderr


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("train.py", "dpo_train.py"), ("torchrun, --nproc_per_node=8, train.py", "trl, grpo"),
        ("train.py", "-m, openrlhf.cli.train_rm"), ("train.py", "scripts/run_reward_model.py"),
        ("train.py", "pretrain.py"), ("torchrun,", "sh, -c, 'torchrun kto.py',"),
    ],
)  # fmt: skip
def test_no_number_is_written_for_another_objective(tmp_path: Path, old: str, new: str) -> None:
    (tmp_path / "job.yaml").write_text((CASES / "job.yaml").read_text().replace(old, new))
    result = run("--job", str(tmp_path / "job.yaml"), *JOB, "--patch")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "is not supervised fine-tuning" in result.stderr or "; give --objective " in result.stderr


@pytest.mark.parametrize("kind", ["MPIJob", "StatefulSet", "RayCluster", "Deployment"])
def test_other_kinds_are_refused_by_name_with_the_way_out(tmp_path: Path, kind: str) -> None:
    (tmp_path / "job.yaml").write_text(f"apiVersion: example.org/v1\nkind: {kind}\nspec: {{}}\n")
    result = run("--job", str(tmp_path / "job.yaml"), *JOB, "--patch")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"has {kind}; or give the job by options without --job" in result.stderr
