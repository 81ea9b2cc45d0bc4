"""Composed memory under DeepSpeed's ZeRO, compared with peaks that were counted in its processes."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

for package in ("torch", "transformers", "peft", "bitsandbytes"):
    pytest.importorskip(package, reason="versions are traced with the extra [build], installed on Python 3.11")

from autoconf.pipeline.validation import zero_truth
from autoconf.pipeline.validation.zero_truth import Profiles, ZeroCheck, ZeroResult

EVERY = 5  # the stages take turns, so that all of them are compared


@pytest.fixture(scope="module", params=[False, True], ids=["all on the GPU", "offload"])
def offload(request) -> bool:
    return request.param


@pytest.fixture(scope="module")
def counted(offload) -> pd.DataFrame:
    return pd.read_csv(zero_truth.OFFLOAD_OUTPUT if offload else zero_truth.OUTPUT)


@pytest.fixture(scope="module")
def checks(counted, offload) -> list[ZeroCheck]:
    return list(zero_truth.sample(len(counted), offload=offload))


@pytest.fixture(scope="module")
def profiles() -> Profiles:
    return Profiles()


def test_the_table_is_of_the_sample(counted, checks, offload):
    assert len(counted) >= 40
    if offload:
        assert counted["offload"].tolist() == [check.stack.offload for check in checks]
        assert set(counted["offload"]) == {"optimizer", "parameters", "optimizer_and_parameters"}
    assert counted["sharding"].tolist() == [check.stack.sharding for check in checks]
    assert counted["gpus"].tolist() == [check.gpus for check in checks]
    assert counted["reduce_bucket_size"].tolist() == [check.buckets.reduce_bucket_size for check in checks]
    assert set(counted["method"]) == {"full", "lora"}
    assert set(counted["accumulating"]) == set(counted["overlap_comm"]) == {True, False}


def test_composed_figures_are_those_of_the_table(counted, checks, profiles):
    for index in range(0, len(checks), EVERY):
        composed = profiles.peak_bytes(checks[index])
        assert composed / 1024 == pytest.approx(counted["composed_kib"][index], rel=1e-3), index


def test_the_table_is_within_the_limits(counted, offload):
    differences = 100 * (counted["composed_kib"] / counted["measured_kib"] - 1)
    assert differences.abs().median() <= zero_truth.MEDIAN_PERCENT
    assert differences.min() >= -zero_truth.WORST_PERCENT
    assert differences.max() <= (zero_truth.OFFLOAD_HIGHEST_PERCENT if offload else zero_truth.WORST_PERCENT)
    assert (differences <= zero_truth.WORST_PERCENT).mean() > 0.9


def test_the_process_that_holds_most_decides(checks):
    result = ZeroResult(checks[0], composed=1030.0, measured={"micro_batch": 1000, "step": 900})
    assert (result.peak, zero_truth.row(result)["peak_in"]) == (1000, "micro_batch")
    assert result.difference_percent == pytest.approx(3.0)
    assert replace(result, measured={"micro_batch": 1000, "step": 1030}).difference_percent == 0
