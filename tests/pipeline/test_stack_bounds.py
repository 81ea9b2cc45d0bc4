"""Bounds of what a job needs over the stacks that its source allows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch", reason="jobs are recorded with the extra [build], installed on Python 3.11")

import typer

from autoconf.pipeline.replay.known_runs import RUNS
from autoconf.pipeline.validation import stack_bounds
from autoconf.pipeline.validation.stack_bounds import RELEASES, Choice

FOUR = next(run for run in RUNS if run.name.startswith("llama3.2-3b") and run.batches.accumulation == 4)
INSTALLED = next(release for release, libraries in RELEASES.items() if libraries is None)


def test_a_choice_becomes_the_input_of_a_replay() -> None:
    padded = Choice(INSTALLED, (), "adamw_torch", False).input(FOUR)
    assert padded["batches"] == (FOUR.batches.samples, FOUR.batches.tokens_per_sample, 2)
    assert padded["stack"] == {"kernels": (), "optim": "adamw_torch", "gradient_accumulation": True}
    together = Choice(INSTALLED, ("fast_loss",), "adamw_torch_fused", True).input(FOUR)
    assert together["batches"] == (1, FOUR.batches.samples * FOUR.batches.tokens_per_sample, 2)
    assert together["stack"]["kernels"] == ("fast_loss",)


def test_a_run_of_which_only_the_libraries_are_open_keeps_its_settings() -> None:
    run = next(run for run in RUNS if "LoRA r 8" in run.name)
    (one,) = stack_bounds.choices(run, [INSTALLED])
    assert one.input(run)["stack"] == {
        **run.settings,
        "kernels": (),
        "optim": "adamw_torch",
        "gradient_accumulation": False,
    }
    assert len(list(stack_bounds.choices(FOUR, [INSTALLED]))) == 8


def test_the_job_of_s1_has_the_stack_of_its_repository_and_any_length() -> None:
    run = next(run for run in RUNS if run.name.startswith("Qwen2.5-32B"))
    (one,) = stack_bounds.choices(run, RELEASES)
    assert RELEASES[one.release].transformers == "4.46.1"
    stated = one.input(stack_bounds._with_tokens(run, 16000))
    assert stated["stack"]["gradient_checkpointing"] == "reentrant" and not stated["prefetches"]
    assert (stated["batches"], stated["compute_capability"]) == ((1, 16000, 1), 9)
    assert one.release not in {choice.release for choice in stack_bounds.choices(FOUR, RELEASES)}


def figures(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """77 GiB for foreach, 2 less for fused, 20 less for fast kernels, 1 more for concatenated samples."""
    return [
        {
            "failed": False,
            "least_gib": 77
            - 2 * job["stack"]["optim"].endswith("fused")
            - 20 * bool(job["stack"]["kernels"])
            + (job["batches"][0] == 1),
        }
        for job in jobs
    ]


def test_the_table_has_bounds_over_collators_and_optimizers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []

    def run(libraries: Any, module: str, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        assert libraries is None and module.endswith("replay_jobs")
        asked.append(len(jobs))
        return figures(jobs)

    monkeypatch.setattr(stack_bounds.environments, "run", run)
    # 79.00 GiB do not fit if 78.5 can be used.
    gpu = SimpleNamespace(usable_gib=78.5, compute_capability=8.0)
    monkeypatch.setattr(stack_bounds, "gpu_types", lambda: {FOUR.gpu: gpu})
    monkeypatch.setattr(stack_bounds, "overhead_gib", lambda gpus, gpu: 1.0)
    stack_bounds.main("installed")
    printed = capsys.readouterr().out
    # Concatenated samples of three of the runs are the same job.
    assert asked == [(4 + 2) * 4]
    assert f"| {FOUR.name} | {INSTALLED} | plain | 78.00 to 79.00 | 76.00 to 77.00 | 3 of 4 |" in printed
    assert f"| {FOUR.name} | {INSTALLED} | fast | 58.00 to 59.00 | 56.00 to 57.00 | 4 of 4 |" in printed
    assert f"{FOUR.name}: 56.00 to 79.00 GiB; runs on 7 of 8 stacks." in printed


def test_jobs_that_cannot_be_recorded_and_unknown_releases_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stack_bounds.environments, "run", lambda *args: [{"problem": "TraceError: no"}] * len(args[2]))
    with pytest.raises(ValueError, match=r"accumulation 4.*TraceError: no"):
        stack_bounds.replays([FOUR], [INSTALLED])
    with pytest.raises(typer.Exit) as ended:
        stack_bounds.main("9.9")
    with pytest.raises(typer.Exit):
        stack_bounds.main(run="no such run")
    assert ended.value.exit_code == 2 and "'9.9'" in capsys.readouterr().err
