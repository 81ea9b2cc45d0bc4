"""Commands about job files: what is read, queries about a job in files, its check, and its file for ado."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner, Result

from autoconf import Job, Workload, avoid_oom, cheapest_gpu, estimate, largest_batch, largest_sample, recommend
from autoconf.cli.main import app

ROOT = Path(__file__).parents[2]
PYTORCHJOB = str(ROOT / "examples" / "pytorchjob.yaml")
SCRIPT = """#!/bin/bash
#SBATCH --nodes=1
#SBATCH --gpus-per-node=h100:4
export CUDA_VISIBLE_DEVICES=0,1,2,3
srun accelerate launch --num_processes $SLURM_GPUS_ON_NODE --multi_gpu sft.py --model_name_or_path Qwen/Qwen2.5-7B \\
  --max_length 2048 --packing --per_device_train_batch_size 2 --use_peft --lora_r 16
"""
H100 = "--gpu-model=NVIDIA-H100-80GB-HBM3"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.sbatch"
    path.write_text(SCRIPT)
    return path


def test_job_prints_value_file_line_key_and_rule(script: Path, tmp_path: Path) -> None:
    found = json.loads(run("job", script, "--json").stdout)
    rows = {row["key"]: row for row in found["read"]}
    assert rows["--max_length"] | {"rule": ""} == {
        "value": "2048", "file": str(script), "line": 6, "key": "--max_length", "rule": "",
    }  # fmt: skip
    assert "trl" in rows["--max_length"]["rule"]
    assert (rows["#SBATCH --gpus-per-node"]["value"], rows["#SBATCH --gpus-per-node"]["line"]) == ("h100:4", 3)
    assert (rows["--num_processes"]["value"], rows["--num_processes"]["rule"]) == ("4", "the launcher's count")
    assert (found["number_gpus"], found["method"], found["tokens_per_sample"]) == (4, "lora", 2048)
    text = run("job", script)
    assert text.exit_code == 0 and text.stdout.splitlines()[0].split() == ["value", "file", "line", "key", "rule"]
    assert run("job", script, "-o", tmp_path / "read.csv").stdout == ""
    table = pd.read_csv(tmp_path / "read.csv", dtype=str)
    assert [*table.columns] == ["value", "file", "line", "key", "rule"] and len(table) == len(rows)


def test_job_reads_no_setting_that_an_option_gives(script: Path) -> None:
    found = json.loads(run("job", script, "--json", "--tokens-per-sample=512", "--number-gpus=2").stdout)
    assert (found["tokens_per_sample"], found["number_gpus"]) == (512, 2)
    assert not {"--max_length", "--num_processes"} & {row["key"] for row in found["read"]}


def test_job_prints_an_incomplete_job_and_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("num_processes: 2\nnum_machines: 1\ndistributed_type: MULTI_GPU\n")
    result = run("job", tmp_path / "a.yaml")
    assert result.exit_code == 0 and "not certain: model_name, method, gpu_model" in result.stderr
    assert run("job", tmp_path / "none.yaml").exit_code == 2


@pytest.mark.parametrize(
    ("command", "ask"),
    [
        ("avoid-oom", avoid_oom),
        ("estimate", estimate),
        ("largest-batch", largest_batch),
        ("largest-sample", largest_sample),
    ],
)
def test_a_query_takes_job_and_counts_from_the_files(script: Path, command: str, ask) -> None:
    result = run(command, "--job", script, H100, "--json")
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["number_gpus"] == 4 and f"number_gpus: 4 ({script}:2 #SBATCH --nodes" in result.stderr
    job = json.loads(run("job", script, "--json", H100).stdout)
    fields = {field: job[field] for field in Workload.model_fields if job.get(field) is not None}
    if command == "largest-batch":
        del fields["per_device_train_batch_size"]
    if command == "largest-sample":
        del fields["tokens_per_sample"]
    expected = ask(Job(**fields), number_gpus=4)
    first = {"estimate": "fits"}.get(command, "can_recommend")
    assert answer[first] == getattr(expected, first) == 1
    for field in ("gpus", "tokens_per_sample", "per_device_train_batch_size", "needed_memory_gib"):
        if hasattr(expected, field):
            assert answer[field] == getattr(expected, field)
    assert json.loads(run(command, "--job", script, H100, "--json", "--number-gpus=2").stdout)["number_gpus"] == 2


def test_gpu_model_ranks_types_for_the_job_of_a_file(script: Path) -> None:
    rows = json.loads(run("gpu-model", "--job", script, "--json").stdout)
    job = json.loads(run("job", script, "--json").stdout)
    fields = {f: [job[f]] for f in Workload.model_fields if job.get(f) is not None and f != "gpu_model"}
    best = cheapest_gpu(pd.DataFrame(fields)).iloc[0]
    assert (rows[0]["rank"], rows[0]["gpu_model"]) == (1, best["gpu_model"])


@pytest.mark.parametrize(
    ("command", "requested"),
    [
        ("avoid-oom", 4),
        ("estimate", 4),
        ("largest-batch", 4),
        ("largest-sample", 4),
        ("gpu-model", None),
        ("throughput", 4),
    ],
)
def test_every_query_explains_its_answer(script: Path, command: str, requested: int | None) -> None:
    options = () if command == "gpu-model" else (H100,)
    found = json.loads(run(command, "--job", script, *options, "--explain", "--json").stdout)
    counts = [at["number_gpus"] for at in found["at"]]
    assert counts and (requested is None or requested in counts)
    assert all(at["needed_memory_gib"] > 0 for at in found["at"]) and isinstance(found["changes"], list)
    text = run(command, "--job", script, *options, "--explain").stdout
    assert "weights" in text and "activations" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("#SBATCH --nodes=1", "#SBATCH --nodes=2"), "nodes"),
        (("--num_processes $SLURM_GPUS_ON_NODE", "--num_processes 2"), "the launcher starts 2 processes"),
        (("--nodes=1", "--nodes=1-2"), "cannot be read together"),
        (("--num_processes $SLURM_GPUS_ON_NODE", "--num_processes $N"), "$N (not set in the file) is not a number"),
    ],
)
def test_counts_that_are_not_certain_are_asked_for(script: Path, change: tuple[str, str], message: str) -> None:
    script.write_text(script.read_text().replace(*change))
    result = run("avoid-oom", "--job", script, H100)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "not certain: number_gpus" in result.stderr and message in result.stderr
    assert result.stderr.rstrip().endswith("give --number-gpus")
    assert run("avoid-oom", "--job", script, H100, "--number-gpus=4").exit_code == 0


def test_check_says_in_one_line_whether_a_job_fits(script: Path, tmp_path: Path) -> None:
    fits = run("check", "--job", script, H100)
    assert (fits.exit_code, fits.stderr) == (0, "")
    (line,) = fits.stdout.splitlines()
    assert line.startswith(f"{script}: fits on 4 x NVIDIA-H100-80GB-HBM3: needs ")
    no = run("check", "--job", script, "--gpu-model=NVIDIA-L4")
    assert (no.exit_code, len(no.stdout.splitlines()), no.stderr) == (4, 1, "") and "does not fit on 4" in no.stdout
    (tmp_path / "broken.sh").write_text("trl grpo --model_name_or_path m\n")
    broken = run("check", "--job", tmp_path / "broken.sh", H100)
    assert (broken.exit_code, broken.stdout, len(broken.stderr.splitlines())) == (2, "", 1)
    several = run("check", script, tmp_path / "broken.sh", H100)
    assert (several.exit_code, len(several.stdout.splitlines())) == (2, 1)
    assert run("check").exit_code == 2


def test_the_hook_of_pre_commit_is_the_command() -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    program, *arguments = hook["entry"].split()
    assert program == "ado-autoconf" and hook["language"] == "python"
    assert run(*arguments, PYTORCHJOB).exit_code == 0


def test_a_saved_job_is_what_run_experiment_takes(script: Path, tmp_path: Path) -> None:
    saved = tmp_path / "job.yaml"
    result = run("recommend", "--job", script, H100, "--save-job", saved, "--json")
    assert result.exit_code == 0 and f"{saved}: the job for run_experiment" in result.stderr
    command = [Path(sys.executable).with_name("run_experiment"), saved]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    printed = {line.split()[0]: line.split()[-1] for line in done.stdout.splitlines() if len(line.split()) >= 2}
    assert (printed["valid"], float(printed["can_recommend"])) == ("True", 1)
    entity = yaml.safe_load(saved.read_text())["entity"]
    assert float(printed["gpus"]) == recommend(Job(**entity)).gpus and entity["batch_size"] == 8
    assert "batch_size 8 is 2 on each of 4 GPUs" in result.stderr


@pytest.mark.parametrize(
    ("command", "experiment"),
    [("avoid-oom", "avoid_oom_recommender"), ("estimate", "memory_estimator"),
     ("largest-batch", "largest_batch_recommender"), ("largest-sample", "largest_sample_recommender"),
     ("gpu-model", "gpu_model_recommender"), ("throughput", "throughput_estimator")],
)  # fmt: skip
def test_a_saved_job_names_the_experiment_of_the_command(
    script: Path, tmp_path: Path, command: str, experiment: str
) -> None:
    options = () if command == "gpu-model" else (H100,)
    assert run(command, "--job", script, *options, "--save-job", tmp_path / "job.yaml").exit_code == 0
    document = yaml.safe_load((tmp_path / "job.yaml").read_text())
    assert document["experiments"][0]["experimentIdentifier"] == experiment
    assert document["entity"]["lora_r"] == 16 and ("number_gpus" in document["entity"]) == (command != "gpu-model")


def test_a_batch_on_an_unknown_number_of_gpus_is_not_saved(script: Path, tmp_path: Path) -> None:
    script.write_text(script.read_text().replace("$SLURM_GPUS_ON_NODE", "$N"))
    result = run("recommend", "--job", script, H100, "--save-job", tmp_path / "job.yaml")
    assert (result.exit_code, result.stdout) == (2, "") and "give --batch-size" in result.stderr
    assert not (tmp_path / "job.yaml").exists()


def test_a_saved_job_replaces_no_file(script: Path, tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text("mine")
    (tmp_path / "link.yaml").symlink_to(tmp_path / "nowhere")
    for name in ("old.yaml", "link.yaml", "no/folder.yaml"):
        result = run("recommend", "--job", script, H100, "--save-job", tmp_path / name)
        assert (result.exit_code, result.stdout) == (2, "") and "cannot write it" in result.stderr
    assert (tmp_path / "old.yaml").read_text() == "mine" and not (tmp_path / "nowhere").exists()
    assert run("recommend", "--job", script, H100, "--save-job", "-").exit_code == 2


def test_patch_says_which_file_counts_the_gpus(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text("distributed_type: MULTI_GPU\nnum_machines: 1\nnum_processes: 4\n")
    launcher = tmp_path / "run.sh"
    launcher.write_text(
        "accelerate launch --config_file two.yaml trl/scripts/sft.py --model_name_or_path Qwen/Qwen2.5-0.5B "
        "--max_length 512 --per_device_train_batch_size 1 --bf16\n"
    )
    refused = run("recommend", f"--job={launcher}", H100, "--patch")
    assert refused.exit_code == 2
    config = tmp_path / "two.yaml"
    assert f"{config}:3 num_processes counts the GPUs; to change it, give {config} by --job, too" in refused.stderr
    both = run("recommend", f"--job={launcher}", f"--job={config}", H100, "--patch")
    assert both.stdout == config.read_text().replace("num_processes: 4", "num_processes: 1")
