"""The comparison of composed memory with whole traces: sampling, comparing and reporting."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest

for package in ("torch", "transformers", "peft", "bitsandbytes"):
    pytest.importorskip(package, reason="versions are traced with the extra [build], installed on Python 3.11")

from on_demand import OnDemand
from small_jobs import small_job

from autoconf.jobs.stack import Stack
from autoconf.memory.profile import Point
from autoconf.memory.units import GIB
from autoconf.pipeline.catalog import architectures
from autoconf.pipeline.tracing.model_setup import TrainingSetup
from autoconf.pipeline.validation import (
    composition,
    rank_trace,
)
from autoconf.pipeline.validation.composition import ComposedPeak


def drawn(count: int, seed: int) -> list[TrainingSetup]:
    chance = composition.np.random.default_rng(seed)
    jobs = (composition.draw(["llama-7b", "mistral-7b-v0.1"], chance) for _ in iter(int, 1))
    return list(islice((job for job in jobs if job is not None), count))


def test_a_sample_is_the_same_for_a_seed_and_another_for_another():
    assert drawn(20, seed=1) == drawn(20, seed=1) != drawn(20, seed=2)


def test_every_setting_is_drawn():
    jobs = drawn(300, seed=1)
    assert {job.method for job in jobs} == {"full", "lora", "qlora"}
    assert {job.gpus for job in jobs} == {1, max(composition.GPUS)}
    assert {job.architecture.name for job in jobs} == {"llama-7b", "mistral-7b-v0.1"}
    for name, choices in composition._SETTINGS.items():
        assert {getattr(job.stack, name) for job in jobs} == set(choices), name


def test_jobs_that_a_version_has_no_figures_for_are_not_drawn(monkeypatch):
    table = OnDemand(architectures()["llama-7b"])
    nothing = composition.np.array([[point, *[0.0] * 8] for point in (Point.KEPT, Point.KEPT_OVER, Point.LOSS)])
    monkeypatch.setattr(table, "models", ["llama-7b"], raising=False)
    held = {"lora": None, "qlora": nothing, "full": nothing}
    monkeypatch.setattr(table, "moments", lambda model, way: held.get(way[0], nothing[2:]))  # of a head, its last row
    assert {job.method for job in composition.sample(table, 20)} == {"full", "qlora"}


def test_jobs_whose_ops_depend_on_the_tokens_are_compared_with_whole_models():
    job = small_job("full", layers=5, loss="chunked_nll")
    peaks = composition.whole_peaks(job)
    assert list(peaks) == [(1, rank_trace.SAMPLES * tokens) for tokens in composition.TOKENS[:2]]
    table = OnDemand(job.architecture)
    for (_, tokens), whole in peaks.items():
        assert table.peak_bytes(job, tokens) == pytest.approx(whole, rel=0.02)


def test_others_are_predicted_at_every_number_of_tokens_and_gpus():
    job = small_job("full", gpus=8, layers=5, sharding="ddp")
    peaks = composition.whole_peaks(job)
    assert list(peaks) == [(g, rank_trace.SAMPLES * t) for g in composition.GPUS for t in composition.TOKENS]
    tokens = rank_trace.SAMPLES * composition.TOKENS[0]
    run = composition.whole_run(replace(job, gpus=2), tokens)
    assert peaks[2, tokens] == pytest.approx(run.peak_bytes(tokens, 2), rel=1e-5)


def comparison(whole: float, gpus: int = 1, **settings) -> ComposedPeak:
    job = TrainingSetup(architectures()["llama-7b"], "lora", Stack(**settings), gpus)
    return ComposedPeak(job, 1018, 10 * GIB, whole * GIB)


def test_a_row_lists_settings_that_differ_from_the_reference_stack():
    row = composition.row(comparison(9.9, 2, sharding="fsdp1", lora_r=16))
    assert row == {
        "model": "llama-7b", "method": "lora", "settings": "sharding=fsdp1, lora_r=16", "gpus": 2,
        "tokens_per_gpu": 1018, "composed_gib": 10, "whole_gib": 9.9, "difference_percent": 1.01,
    }  # fmt: skip


def test_the_summary_has_the_spread_of_each_way_to_share_work():
    found = [
        comparison(10),
        comparison(9.9),
        comparison(10.1, 2, sharding="fsdp1"),
        comparison(10, 8, sharding="fsdp1"),
    ]
    fsdp1, one, every = composition.summary(found)
    assert (fsdp1["sharding"], one["sharding"], every["sharding"]) == ("fsdp1", "one GPU", "all")
    assert (fsdp1["jobs"], fsdp1["comparisons"], every["comparisons"]) == (1, 2, 4)
    assert (fsdp1["lowest"], fsdp1["highest"], one["highest"]) == ("-0.99 %", "+0.00 %", "+1.01 %")


def test_the_worst_jobs_come_first_and_each_once():
    found = [comparison(10.1), comparison(8), comparison(9, 2, lora_r=8)]
    assert [row["whole_gib"] for row in composition.worst(found, 5)] == [8, 9]


@pytest.mark.parametrize("sharding", ["fsdp1", "fsdp2"])
@pytest.mark.parametrize("settings", [{}, {"torch_dtype": "float32", "mixed_precision": "bf16"}], ids=["same", "mixed"])
def test_gradients_that_every_micro_batch_reduces_are_composed_as_traced(sharding, settings):
    job = small_job("full", gpus=8, layers=5, sharding=sharding, gradient_sync="every", **settings)
    table = OnDemand(job.architecture)
    whole_until_last = replace(job, stack=job.stack.model_copy(update={"gradient_sync": "last"}))
    for (gpus, tokens), whole in composition.whole_peaks(job).items():
        composed = table.peak_bytes(replace(job, gpus=gpus), tokens)
        assert -0.02 < composed / whole - 1 < 0.03  # of a model 128 wide, whose buffers count
        assert gpus == 2 or composed < table.peak_bytes(replace(whole_until_last, gpus=gpus), tokens)
