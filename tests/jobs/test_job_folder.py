"""``--job DIR`` finds the launcher and what it names, or lists the files among which it cannot choose."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from autoconf.cli.main import app
from autoconf.errors import BadInput
from autoconf.jobs.importers.folder import files_in

LAUNCHER = """#!/bin/bash
#SBATCH --gres=gpu:4
accelerate launch --config_file configs/fsdp.yaml --num_processes 4 -m trl.scripts.sft --config configs/sft.yaml
"""
FSDP = "distributed_type: FSDP\nfsdp_config: {fsdp_version: 2}\nmixed_precision: bf16\nnum_machines: 1\n"
SFT = (
    "model_name_or_path: Qwen/Qwen2.5-7B\nmax_length: 2048\npacking: true\nper_device_train_batch_size: 2\n"
    "use_peft: true\nlora_r: 8\ndataset_name: d\n"
)
H100 = "--gpu-model=NVIDIA-H100-80GB-HBM3"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "configs").mkdir()
    for name, text in {
        "launch.sh": LAUNCHER, "configs/fsdp.yaml": FSDP, "configs/sft.yaml": SFT, "README.md": "torchrun x.py\n",
        "setup.sh": "pip install trl\n", ".hidden.sh": LAUNCHER, "data.json": "[1, 2]", "prepare.py": "print(1)\n",
        "ci.yaml": "on: push\njobs: {a: {steps: []}}\n", "broken.yaml": "a: [\n", "binary.sh": "\x00",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(text)
    (tmp_path / "loop").symlink_to(tmp_path)
    return tmp_path


def test_the_launcher_and_its_configs_are_taken(folder: Path) -> None:
    result = run("job", folder, "--json")
    found = json.loads(result.stdout)
    assert (found["model_name"], found["sharding"], found["number_gpus"]) == ("Qwen/Qwen2.5-7B", "fsdp2", 4)
    assert f"{folder}: taken: {folder / 'launch.sh'} (the launcher)" in result.stderr
    assert {Path(row["file"]).name for row in found["read"]} == {"launch.sh", "fsdp.yaml", "sft.yaml"}
    assert run("check", "--job", folder, H100).exit_code == 0
    patched = run("recommend", "--job", folder, H100, "--patch")
    assert patched.exit_code == 0 and "#SBATCH --gres=gpu:1" in patched.stdout


def test_several_launchers_are_listed(folder: Path) -> None:
    (folder / "other.sbatch").write_text("torchrun train.py $UNKNOWN\n")
    (folder / "job.yaml").write_text("apiVersion: batch/v1\nkind: Job\nspec: {}\n")
    result = run("recommend", "--job", folder, H100)
    assert (result.exit_code, result.stdout) == (2, "")
    message = result.stderr.splitlines()[-1]
    assert message.startswith(f"{folder}: 3 files start a training: ")
    assert all(str(folder / name) in message for name in ("job.yaml", "launch.sh", "other.sbatch"))


def test_without_a_launcher_the_only_config_is_taken(folder: Path) -> None:
    (folder / "launch.sh").unlink()
    assert files_in(str(folder)).paths == (str(folder / "configs/sft.yaml"), str(folder / "configs/fsdp.yaml"))
    (folder / "more.yaml").write_text(SFT)
    with pytest.raises(BadInput, match=r"2 configs of a trainer: .*more\.yaml, .*sft\.yaml"):
        files_in(str(folder))


def test_a_script_that_the_launcher_starts_is_taken_for_its_literals(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text("accelerate launch --num_processes 2 train.py\n")
    (tmp_path / "train.py").write_text(
        "from trl import SFTConfig, SFTTrainer\n"
        "args = SFTConfig(max_length=2048, packing=True, per_device_train_batch_size=2)\n"
        "SFTTrainer(model='Qwen/Qwen2.5-7B', args=args).train()\n"
    )
    found = files_in(str(tmp_path))
    assert found.paths == (str(tmp_path / "run.sh"), str(tmp_path / "train.py"))
    answer = json.loads(run("job", tmp_path, "--json").stdout)
    assert (answer["tokens_per_sample"], answer["number_gpus"]) == (2048, 2)


def test_a_folder_without_a_job_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.sh").write_text("ls\n")
    result = run("check", "--job", tmp_path, H100)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no file in it starts or describes a training" in result.stderr


def test_a_trainjob_comes_with_its_runtime(tmp_path: Path) -> None:
    job = "apiVersion: trainer.kubeflow.org/v1alpha1\nkind: TrainJob\nspec: {runtimeRef: {name: mine}, trainer: {}}\n"
    (tmp_path / "job.yaml").write_text(job)
    for name in ("mine", "other"):
        (tmp_path / f"{name}.yaml").write_text(
            "apiVersion: trainer.kubeflow.org/v1alpha1\nkind: TrainingRuntime\n"
            f"metadata: {{name: {name}}}\nspec: {{}}\n"
        )
    assert files_in(str(tmp_path)).paths == (str(tmp_path / "job.yaml"), str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("command", [("job", "-"), ("check", "--job", "-"), ("recommend", "--job", "-", "--patch")])
def test_standard_input_is_refused_in_one_sentence(command: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, list(command), input=SFT)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "--job: must be a file or a folder, because standard input can be read only once\n"


def test_a_script_that_the_launcher_runs_is_not_another_launcher(tmp_path: Path) -> None:
    (tmp_path / "job.sbatch").write_text("#SBATCH --gres=gpu:4\nsource env.sh\nbash train.sh 2048\n")
    (tmp_path / "env.sh").write_text("export MODEL=Qwen/Qwen2.5-7B\n")
    (tmp_path / "train.sh").write_text("trl sft --model_name_or_path $MODEL --max_length $1 --num_processes 4\n")
    assert files_in(str(tmp_path)).paths == (str(tmp_path / "job.sbatch"),)
