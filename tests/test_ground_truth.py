"""The closed form against traces of one FSDP rank, of whole stacks and of other token counts."""

from __future__ import annotations

import csv

import pytest

for package in ("torch", "transformers", "peft"):
    pytest.importorskip(package, reason=f"{package} is in build environments only: it traces the training code")

from autoconf.build import ground_truth  # noqa: E402 (after the guard)


@pytest.fixture(scope="module")
def comparisons() -> list[ground_truth.Comparison]:
    return [ground_truth.compare(job) for job in ground_truth.quick_jobs()]


def test_closed_form_matches_traces(comparisons: list[ground_truth.Comparison]) -> None:
    outside = [(c.job, f"{c.difference_percent:.1f} %") for c in comparisons if not c.within_limit]
    assert not outside


def test_quick_jobs_cover_every_check_and_method_with_and_without_accumulation() -> None:
    jobs = ground_truth.quick_jobs()
    assert {job.check for job in jobs} == set(ground_truth.LIMIT_PERCENT)
    fsdp = [job for job in jobs if job.check == "fsdp"]
    assert {job.method for job in fsdp} == {"full", "lora"}
    assert {job.accumulating for job in fsdp} == {True, False}
    assert {job.gpus for job in fsdp} == {2, 4, 8}


def test_accumulated_gradients_are_whole_on_every_rank() -> None:
    job = ground_truth.Job("fsdp", "llama-7b", "full", True, gpus=8, samples=1, tokens_per_sample=512, layers=2)
    parameters = ground_truth._figures("llama-7b", 2, "full", True).parameters
    # Weights and AdamW's states are an eighth, gradients are not.
    assert ground_truth.fsdp_peak_bytes(job) > 2 * parameters + 6 * parameters / 8


def test_comparisons_are_written_in_mib(comparisons: list[ground_truth.Comparison], tmp_path) -> None:
    ground_truth.write(comparisons, tmp_path / "ground_truth.csv")
    rows = list(csv.DictReader((tmp_path / "ground_truth.csv").open(encoding="utf-8")))
    assert len(rows) == len(comparisons)
    assert abs(int(rows[0]["trace_mib"]) * 2**20 - comparisons[0].trace) < 2**20
