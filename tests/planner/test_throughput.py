"""Throughput of jobs and tables, the length of a run, and its cost."""

import pandas as pd
import pytest

from autoconf import Job, Workload, estimate, throughput

JOB = {
    "model_name": "mistralai/Mistral-7B-v0.1", "method": "full", "gpu_model": "NVIDIA-A100-SXM4-80GB",
    "tokens_per_sample": 2048, "batch_size": 32,
}  # fmt: skip


def of(number_gpus=8, **changes):
    run = {field: changes.pop(field) for field in ("dataset_tokens", "epochs", "steps", "prices") if field in changes}
    return throughput(Workload(**JOB | changes), number_gpus, **run)


@pytest.mark.parametrize(
    ("changes", "gpus", "measured"),
    [  # public runs: LLMFineTuningBench and fms-acceleration
        ({"sharding": "fsdp1", "batch_size": 64}, 8, 26_427),
        ({"method": "lora", "batch_size": 16}, 1, 3_849),
        (
            {"model_name": "llama3-8b", "method": "lora", "tokens_per_sample": 4096, "batch_size": 8, "stack": "trl"},
            1,
            3_860,
        ),
    ],
)
def test_it_is_near_public_runs(changes, gpus, measured):
    found = of(gpus, **changes)
    assert found.outcome == "ok"
    assert found.tokens_per_second == pytest.approx(measured, rel=0.1)


def test_the_figures_of_an_answer_agree_with_each_other():
    found = of(gradient_accumulation_steps=2, dataset_tokens=10**9, epochs=3)
    tokens = 32 * 2048 * 2
    assert found.tokens_per_second == pytest.approx(tokens / found.step_seconds)
    assert found.hours == pytest.approx(3 * 10**9 / found.tokens_per_second / 3600)
    assert found.cost == pytest.approx(found.hours * 8 * 1.39)
    in_steps = of(gradient_accumulation_steps=2, steps=100)
    assert in_steps.hours == pytest.approx(100 * found.step_seconds / 3600)
    assert of(gradient_accumulation_steps=2).hours is None


def test_prices_may_be_ones_own_and_a_type_without_price_has_no_cost():
    assert of(steps=10, prices={"A100-SXM4-80GB": 2}).cost == pytest.approx(of(steps=10).hours * 16)
    without = of(steps=10, prices={"H100-SXM": 2})
    assert without.cost is None and without.hours is not None


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ({"steps": 10, "dataset_tokens": 10}, "steps and dataset_tokens exclude each other"),
        ({"epochs": 2}, "epochs: needs dataset_tokens"),
        ({"steps": 0}, "steps: must be a whole number >= 1"),
        ({"dataset_tokens": "many"}, "dataset_tokens: must be a whole number >= 1"),
    ],
)
def test_bad_lengths_of_a_run_are_named(run, said):
    with pytest.raises(ValueError, match=said):
        of(**run)
    row = throughput(pd.DataFrame([{**JOB, "number_gpus": 8, **run}])).iloc[0]
    assert row["outcome"] == "bad_value" and said in row["reason"]


def test_a_table_has_the_answers_of_its_jobs():
    jobs = [
        {**JOB, "number_gpus": 8, "steps": 10},
        {**JOB, "number_gpus": 4, "dataset_tokens": 10**6, "epochs": 2},
        {**JOB, "number_gpus": 4, "method": "lora"},
        {**JOB, "number_gpus": 5},
        {**JOB, "number_gpus": 2, "model_name": "gpt-9"},
    ]
    table = throughput(pd.DataFrame(jobs))
    assert table["outcome"].tolist() == ["ok", "ok", "ok", "outside_domain", "outside_domain"]
    for row, one in zip(table.to_dict("records")[:3], jobs, strict=False):
        run = {field: one[field] for field in ("steps", "dataset_tokens", "epochs") if field in one}
        workload = Workload(**{field: value for field, value in one.items() if field in Workload.model_fields})
        alone = throughput(workload, one["number_gpus"], **run)
        for field in ("fits", "tokens_per_second", "tokens_per_second_low", "step_seconds", "limit"):
            assert row[field] == pytest.approx(getattr(alone, field))
    assert table["hours"].notna().tolist() == [True, True, False, False, False]
    assert table.loc[4, "limit"] is None and "gpt-9" in table.loc[4, "reason"]


def test_a_job_that_does_not_fit_says_so_as_the_estimate_does():
    job = Workload(**JOB | {"model_name": "llama3.1-70b"})
    found = throughput(job, 1)
    assert (found.fits, found.outcome) == (estimate(job, 1).fits, "fits_nowhere") == (0, "fits_nowhere")
    assert found.reason.startswith("it does not fit: ") and found.tokens_per_second > 0


def test_the_nodes_follow_from_the_gpus_of_a_worker():
    on_one, on_two = of(8, gpus_per_worker=8), of(8, gpus_per_worker=4)
    assert on_two.tokens_per_second < on_one.tokens_per_second
    assert any("2 nodes" in note for note in on_two.notes)


def test_figures_of_a_gpu_that_are_not_verified_are_named():
    said = "the speed of NVIDIA-A30 is not verified: the bandwidth of the NVLink bridge"
    assert said in of(model_name="granite-3.1-2b", method="lora", gpu_model="NVIDIA-A30").notes
    assert not any("not verified" in note for note in of().notes)


def test_missing_fields_are_named():
    with pytest.raises(ValueError, match="number_gpus"):
        throughput(Workload(**JOB), None)
    with pytest.raises(ValueError, match="gpu_model: is required"):
        throughput(Job(**{field: value for field, value in JOB.items() if field != "gpu_model"}), 8)
    with pytest.raises(ValueError, match="number_gpus: required column missing"):
        throughput(pd.DataFrame([JOB]))
