"""Replays of real runs are compared with nvidia-smi."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="jobs are recorded with the extra [build], installed on Python 3.11")

from small_jobs import small_job

from autoconf.pipeline.validation import compare_reserved, replay_jobs
from autoconf.pipeline.validation.benchmark_runs import Run
from autoconf.pipeline.validation.compare_reserved import Reserved

FINISHED = Run(
    line=2, model="a/small", architecture=small_job("full").architecture, method="full", stack=small_job("full").stack,
    framework="none", gpus=1, tokens_per_gpu=2 * 509, libraries=None, usable_gib=79.15, failed=False, peak_gib=10.0,
    unreported_gib=0.0, samples=2, accumulation=2, in_use_gib=20.0,
)  # fmt: skip


def test_finished_runs_on_one_gpu_that_have_a_reading_are_compared() -> None:
    left_out = [
        replace(FINISHED, failed=True),
        replace(FINISHED, gpus=2),
        replace(FINISHED, in_use_gib=None),
        replace(FINISHED, framework="foak-fast-kernels"),
    ]
    assert compare_reserved.comparable([*left_out, FINISHED], ["none"]) == [FINISHED]


def test_memory_outside_pytorch_counts_and_failures_have_no_difference() -> None:
    found = [
        Reserved(FINISHED, 10.0, 20.0 - 0.92),
        Reserved(FINISHED, 10.0, 18.0 - 0.92),
        Reserved(FINISHED, 10.0, 5.0, failed=True),
        Reserved(FINISHED, problem="TraceError: no"),
    ]
    assert [one.difference_percent for one in found] == pytest.approx([0, -10, None, None])
    assert compare_reserved.summary(found) == ("2 of 4 runs: median 5.0 %, 95th percentile 9.5 %, worst 10.0 %.")
    cells = [row["reserved + not PyTorch's, difference"] for row in compare_reserved.table(found)]
    assert cells == ["+0.0 %", "-10.0 %", "out of memory in the replay", "TraceError"]
    assert compare_reserved.summary(found[2:]) == "0 of 2 runs were replayed to their end."


def test_a_run_is_replayed_by_a_process_with_its_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The installed ones here; its micro-batches are those of the run, and the GPU is full at its limit."""
    (whole,) = compare_reserved.compare([FINISHED])
    assert whole.problem == "" and not whole.failed
    assert 0 < whole.allocated_gib <= whole.reserved_gib < 1
    less = replace(FINISHED, usable_gib=0.92 + whole.allocated_gib / 2)
    job = compare_reserved._job(less)
    assert job["batches"] == (2, 509, 2)
    assert replay_jobs.replayed(job)["failed"]
    refused = {**job["stack"], "optim": "adamw_bnb_8bit", "sharding": "fsdp2"}
    assert "TraceError" in replay_jobs.replayed({**job, "stack": refused, "gpus": 2})["problem"]


def test_bad_tables_end_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import typer

    with pytest.raises(typer.Exit) as ended:
        compare_reserved.main(tmp_path / "none.csv")
    assert ended.value.exit_code == 2 and "none.csv" in capsys.readouterr().err
