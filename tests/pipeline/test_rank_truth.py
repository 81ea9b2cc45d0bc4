"""Traced ranks compared with real processes and whole models."""

from __future__ import annotations

from dataclasses import replace

import pytest

for package in ("torch", "transformers", "peft", "bitsandbytes"):
    pytest.importorskip(package, reason="versions are traced with the extra [build], installed on Python 3.11")

from autoconf.pipeline.validation import rank_truth

pytestmark = pytest.mark.slow  # real processes, and stacks of full depth


@pytest.fixture(scope="module")
def results() -> list[rank_truth.Result]:
    return list(rank_truth.compare(rank_truth.quick_checks()))


def test_traces_agree_with_real_processes_and_whole_models(results):
    outside = [(rank_truth.row(result), result.difference_percent) for result in results if not result.within_limit]
    assert not outside
    assert len(results) == len(rank_truth.quick_checks())


def test_a_rank_that_holds_something_else_is_outside_the_limit(results):
    for result in results:
        for factor in (0.99, 1.01):
            assert not replace(result, predicted=factor * result.predicted).within_limit


def test_quick_checks_have_every_setting_of_the_processes():
    jobs = [check.job for check in rank_truth.quick_checks() if check.check == "processes"]
    assert {job.method for job in jobs} == {"lora", "full"}
    assert {job.stack.sharding for job in jobs} == {"fsdp1", "fsdp2"}
    assert {job.stack.gradient_checkpointing for job in jobs} == {"reentrant", "non-reentrant"}
    assert {job.stack.gradient_accumulation for job in jobs} == {True, False}


def test_a_row_is_in_kib_and_names_the_stack(results):
    row = rank_truth.row(results[0])
    assert row["measured_kib"] == round(results[0].measured / 1024)
    assert (row["sharding"], row["checkpointing"], row["gpus"]) == ("fsdp1", "reentrant", 2)
