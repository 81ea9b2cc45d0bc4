"""``ado-autoconf estimate --replay``: a small job's allocations, replayed by the command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

for package in ("torch", "transformers", "peft", "bitsandbytes"):
    pytest.importorskip(package, reason="jobs are recorded with the extra [build], installed on Python 3.11")

from autoconf import cli
from autoconf.pipeline.replay.outside_pytorch import overhead

JOB = [
    "--model", "smollm2-135m", "--method", "full", "--gpu", "L40S", "--gpus", "1", "--batch", "16",
    "--seq-len", "1024", "--gradient-accumulation-steps", "1",
]  # fmt: skip
LONGER = [*JOB, "--batch", "64", "--seq-len", "2048"]  # logits of 131,072 tokens do not fit


def command(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["estimate", *arguments])


def answer(*arguments: str) -> dict:
    done = command(*arguments, "--replay", "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def fitting() -> dict:
    return answer(*JOB)


def test_the_answer_adds_up(fitting: dict) -> None:
    assert fitting["fits"] == 1 and fitting["failure"] == fitting["fails_at"] == fitting["error"] == ""
    assert (fitting["model_name"], fitting["number_gpus"]) == ("smollm2-135m", 1)
    assert 0 < fitting["peak_loading_gib"] < fitting["peak_memory_gib"]
    assert fitting["peak_memory_gib"] <= fitting["least_capacity_gib"] <= fitting["peak_reserved_gib"]
    assert fitting["fragmentation_gib"] == pytest.approx(fitting["least_capacity_gib"] - fitting["peak_memory_gib"])
    assert fitting["needed_memory_gib"] == pytest.approx(fitting["least_capacity_gib"] + fitting["overhead_gib"])
    assert fitting["usable_memory_gib"] == 44.4


def test_the_memory_outside_pytorch_is_that_of_the_gpu_type_and_the_answer_says_where_it_comes_from(
    fitting: dict,
) -> None:
    measured = overhead(1, "L40S")
    assert fitting["overhead_gib"] == measured.gib
    assert f"{measured.gib:g} GiB of the GPU are outside PyTorch's allocator: {measured.basis}" in fitting["notes"]


def test_the_peak_is_that_of_the_estimate(fitting: dict) -> None:
    """Blocks are rounded up, and cuBLAS' workspaces come on top: some MiB."""
    done = command(*JOB, "--json")
    estimated = json.loads(done.stdout)["peak_memory_gib"]
    assert estimated < fitting["peak_memory_gib"] < estimated + 0.05


def test_a_picture_is_drawn_in_addition_to_the_text(tmp_path: Path) -> None:
    file = tmp_path / "timeline.png"
    done = command(*JOB, "--replay", "--output", str(file), "--overhead-gib", "2")
    assert done.exit_code == 0, done.stderr
    assert file.read_bytes().startswith(b"\x89PNG")
    assert "needed_memory_gib" in done.stdout and "overhead_gib" in done.stdout
    assert "2 GiB of the GPU are outside PyTorch's allocator: --overhead-gib" in " ".join(done.stdout.split())
    assert [line for line in done.stderr.splitlines() if line.startswith("replay: step")] == [
        f"replay: step {n} of 3" for n in (1, 2, 3)
    ]


def test_a_job_that_fails_names_step_module_and_op() -> None:
    done = command(*LONGER, "--replay", "--json", "--fail-on-no")
    assert done.exit_code == 4, done.stderr
    found = json.loads(done.stdout)
    assert found["fits"] == 0 and found["needed_memory_gib"] > 44.4
    assert found["fails_at"].startswith("step 1, head")
    assert found["failure"].startswith("runs out of memory in step 1: head")
    assert found["error"].startswith("CUDA out of memory. Tried to allocate ")
    assert "has a total capacity of 44.40 GiB" in found["error"]


def test_a_job_that_fails_while_loading_says_so_and_is_drawn(tmp_path: Path) -> None:
    """135 million parameters of float32 are 0.50 GiB, of which each GPU has 0.4 left; FSDP would keep a quarter."""
    file = tmp_path / "timeline.svg"
    sharded = [*JOB, "--gpus", "4", "--sharding", "fsdp1", "--torch-dtype", "float32", "--loading", "gpu"]
    done = command(*sharded, "--replay", "--overhead-gib", "44", "--output", str(file))
    assert done.exit_code == 0 and "runs out of memory while loading:" in file.read_text(), done.stderr
    assert "runs out of memory while loading: from_pretrained" in done.stdout
    assert "loading holds up to 0.5" in done.stdout and "--loading cpu" in done.stdout


@pytest.mark.slow
def test_expandable_segments_are_named_where_they_help(fitting: dict) -> None:
    between = (fitting["needed_memory_gib"] + fitting["expandable_segments_gib"]) / 2 - fitting["overhead_gib"]
    assert fitting["expandable_segments_gib"] < fitting["needed_memory_gib"]
    overhead = fitting["usable_memory_gib"] - between
    found = answer(*JOB, "--overhead-gib", str(overhead))
    assert found["fits"] == 0 and found["expandable_segments_help"]
    assert any("PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True" in note for note in found["notes"])
    helped = answer(*JOB, "--overhead-gib", str(overhead), "--alloc-conf", "expandable_segments:True")
    assert helped["fits"] == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([*JOB, "--alloc-conf", "expandable_segments:True"], "--alloc-conf and --overhead-gib: for --replay only"),
        ([*JOB, "--overhead-gib", "1"], "--alloc-conf and --overhead-gib: for --replay only"),
        ([*JOB, "--replay", "--loading", "disk"], "loading: must be cpu, gpu or rank0, got 'disk'"),
        ([*JOB, "--replay", "--alloc-conf", "expandable:1"], "--alloc-conf: PYTORCH_CUDA_ALLOC_CONF: unknown key"),
        ([*JOB, "--replay", "--overhead-gib", "44.4"], "--overhead-gib: must be from 0 to less than the GPU's 44.4"),
        ([*JOB, "--replay", "--overhead-gib", "-1"], "--overhead-gib: must be from 0 to less than the GPU's 44.4"),
        ([*JOB, "--replay", "--output", "t.txt"], "t.txt: a picture's name must end in .png, .svg or .pdf"),
        ([*JOB, "--replay", "--csv"], "--replay: "),
        (
            [*JOB, "--replay", "--gpus", "2", "--sharding", "fsdp2", "--optim", "adamw_bnb_8bit"],
            "--replay: optim 'adamw_bnb_8bit' and sharding 'fsdp2' cannot be replayed",
        ),
    ],
)
def test_invalid_options_are_bad_input(arguments: list[str], sentence: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = command(*arguments)
    assert (done.exit_code, done.stdout) == (2, "") and sentence in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_job_outside_the_domain_gets_the_reason_as_always() -> None:
    outside = [*JOB, "--model", "no-such-model", "--json"]
    replayed, estimated = command(*outside, "--replay"), command(*outside)
    assert replayed.exit_code == 0 and json.loads(replayed.stdout) == json.loads(estimated.stdout)
    assert "not replayed: " in replayed.stderr


def test_without_the_extra_the_command_names_it() -> None:
    code = "import sys; sys.modules['torch'] = None; from autoconf.cli import app; app()"
    done = subprocess.run([sys.executable, "-c", code, "estimate", *JOB, "--replay"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr.startswith("--replay needs the extra [build]: in a clone of the project") and "torch" in done.stderr
    )
