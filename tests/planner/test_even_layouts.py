"""With ``even_layouts`` only customary layouts are considered."""

import itertools

import numpy as np
import pandas as pd
import pytest

from autoconf import Job, Workload, avoid_oom, cheapest_gpu, estimate, explain, recommend
from autoconf.min_gpu_recommender import min_gpu_recommender

JOB = {
    "model_name": "llama2-70b",
    "method": "lora",
    "gpu_model": "NVIDIA-A100-80GB-PCIe",
    "tokens_per_sample": 4096,
    "batch_size": 24,
    "max_gpus": 64,
}


def customary(per_worker: int, most: int) -> list[int]:
    """Whether a number is a power of two on one worker, or full workers."""
    return [n for n in range(1, most + 1) if (n < per_worker and n in (1, 2, 4, 8, 16, 32)) or n % per_worker == 0]


def test_the_smallest_power_of_two_or_number_of_whole_workers_that_fits_is_recommended():
    generator = np.random.default_rng(2)
    rows = 60
    jobs = pd.DataFrame(
        {
            **JOB,
            "even_layouts": True,
            "gpus_per_worker": generator.choice([1, 4, 6, 8], rows),
            "tokens_per_sample": generator.choice([512, 4096, 16384], rows),
            "batch_size": generator.choice([6, 7, 24, 48, 60], rows),
        }
    )
    counts = [
        [n for n in customary(job.gpus_per_worker, job.max_gpus) if job.batch_size % n == 0]
        for job in jobs.itertuples()
    ]
    on_each = jobs.assign(number_gpus=counts).explode("number_gpus")
    on_each = on_each[estimate(on_each)["fits"].to_numpy() == 1]
    expected = on_each.groupby(level=0)["number_gpus"].min().astype(int).reindex(jobs.index, fill_value=0)
    found = recommend(jobs)
    assert (found["gpus"] * found["workers"]).fillna(0).tolist() == expected.tolist()
    any_layout = recommend(jobs.assign(even_layouts=False))
    assert ((any_layout["gpus"] * any_layout["workers"]).fillna(0) != expected).sum() > 5


def test_a_job_whose_smallest_layout_is_even_keeps_it():
    fields = {**JOB, "batch_size": 8}
    assert recommend(Workload(**fields, even_layouts=True)) == recommend(Workload(**fields))


def test_a_reason_names_the_conditions_on_the_number_of_gpus():
    answer = recommend(Workload(**{**JOB, "batch_size": 7, "even_layouts": True}))
    assert "that divides batch_size 7 and is a power of two up to 8 or full workers of 8 is enough" in answer.reason
    assert "; batch_size=8 would fit on 4 GPUs" in answer.reason


@pytest.mark.parametrize(("requested", "kept"), [(3, 4), (5, 8), (8, 8), (9, 16), (12, 16)])
def test_avoid_oom_goes_to_the_next_even_request(requested, kept):
    fields = {**JOB, "per_device_train_batch_size": 1}
    del fields["batch_size"]
    answer = avoid_oom(Job(**fields, even_layouts=True), requested)
    assert answer.gpus * answer.workers == kept


def test_explain_and_the_choice_of_a_gpu_type_consider_the_same():
    fields = {**JOB, "batch_size": 24, "even_layouts": True}
    assert list(explain(Workload(**fields)).at) == [4, 8]
    del fields["gpu_model"]
    ranking = cheapest_gpu(pd.DataFrame([fields]))
    fitting = ranking[ranking["can_recommend"] == 1]
    assert all(
        gpus * workers in customary(8, 64) for gpus, workers in zip(fitting["gpus"], fitting["workers"], strict=True)
    )


@pytest.mark.parametrize("value", [True, 1, "true", "Yes", "on", np.bool_(True), 1.0])
def test_every_entry_takes_it(value):
    expected = (8, 1)
    found = recommend(Workload.parse(**JOB, even_layouts=value))
    table = recommend(pd.DataFrame([{**JOB, "even_layouts": value}], dtype=object))
    by_ado = min_gpu_recommender(**JOB, model_version="2.0.0", even_layouts=value)
    assert (found.gpus, found.workers) == expected
    assert (table.loc[0, "gpus"], table.loc[0, "workers"]) == expected
    assert (by_ado["gpus"], by_ado["workers"]) == expected


def test_off_is_the_default_and_other_values_are_refused():
    plain = recommend(Workload(**JOB))
    for value in (False, 0, "no", "", None):
        assert recommend(Workload.parse(**JOB, even_layouts=value)) == plain
    for value in (2, "maybe", [], b"1"):
        with pytest.raises(ValueError, match="even_layouts: must be true or false, got "):
            Workload.parse(**JOB, even_layouts=value)


def test_rows_of_a_table_have_their_own():
    rows = pd.DataFrame(
        [{**JOB, "even_layouts": even, "batch_size": b} for even, b in itertools.product((True, False), (6, 24))]
    )
    singles = [recommend(Workload(**row)) for row in rows.to_dict("records")]
    assert recommend(rows)["gpus"].fillna(0).tolist() == [single.gpus or 0 for single in singles]


def test_a_reason_says_where_only_even_layouts_are_in_the_way():
    job = Workload(**{**JOB, "batch_size": 60, "max_gpus": 64}, even_layouts=True)
    (remedy,) = [change for change in recommend(job).changes if change.field == "even_layouts"]
    free = recommend(job.model_copy(update={"even_layouts": False}))
    assert (remedy.before, remedy.value, remedy.gpus, remedy.workers) == (True, False, free.gpus, free.workers)
    assert str(remedy) == f"even_layouts=False would fit on {free.workers} workers of {free.gpus} GPUs"
