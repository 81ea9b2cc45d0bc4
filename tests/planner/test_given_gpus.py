"""A GPU that has no name in the domain is described by its memory, from version 3.0.0 on, in every query."""

import json

import pandas as pd
import pytest
from typer.testing import CliRunner

import autoconf
from autoconf import Job, Workload
from autoconf.cli import app
from autoconf.experiments import memory_estimator
from autoconf.min_gpu_recommender import min_gpu_recommender
from autoconf.predictor import registry

VERSION = "3.0.0"
BASE = {"model_name": "llama-7b", "method": "lora", "tokens_per_sample": 4096, "model_version": VERSION}
JOB = {**BASE, "batch_size": 8}


def recommend(**fields) -> autoconf.Recommendation:
    return autoconf.recommend(Workload(**{**JOB, **fields}))


@pytest.mark.parametrize("name", registry.card(VERSION).domain.gpus)
def test_the_memory_of_a_type_has_the_answer_of_the_type(name):
    gpu = registry.card(VERSION).domain.gpus[name]
    by_name, by_memory = recommend(gpu_model=name), recommend(gpu_memory_gib=gpu.usable_gib)
    by_both = recommend(gpu_model=name, gpu_memory_gib=gpu.usable_gib)
    if gpu.compute_capability >= 8:
        answers = {(one.outcome, one.gpus, one.workers, one.reason) for one in (by_name, by_memory, by_both)}
        assert len(answers) == 1  # with the same remedies
    else:  # nothing says what a GPU without a name cannot run
        assert by_name.outcome == by_both.outcome == "outside_domain"
        assert by_both.reason.partition(";")[0] == by_name.reason.partition(";")[0]
        assert "bfloat16 and FlashAttention-2" in by_memory.notes[0]


def test_more_memory_never_needs_more_gpus():
    memory = [1, 4, *range(8, 200, 3), 512, 1024]
    totals = [
        found.gpus * found.workers if found.gpus else 99 for found in (recommend(gpu_memory_gib=gib) for gib in memory)
    ]
    assert totals == sorted(totals, reverse=True)
    assert (totals[0], totals[-1]) == (99, 1)


@pytest.mark.parametrize("name", [None, "", "unnamed", "Acme X9", "A100"])
def test_a_name_that_the_domain_does_not_have_is_accepted_with_memory_and_a_note_says_what_is_assumed(name):
    found = recommend(gpu_model=name, gpu_memory_gib=40)
    assert found == recommend(gpu_memory_gib="40")
    who = f"gpu_model {name!r}" if name in ("Acme X9", "A100") else "a GPU without a name"
    assert found.notes[0] == f"{who} is assumed to have 40 GiB, bfloat16 and FlashAttention-2"


def test_less_memory_than_a_type_has_is_what_is_usable():
    found = autoconf.estimate(Workload(**JOB, gpu_model="L40S", gpu_memory_gib=30), number_gpus=2)
    assert found.usable_memory_gib == 30
    assert "gpu_memory_gib 30 takes the place of the 44.4 GiB of L40S" in found.notes


@pytest.mark.parametrize(
    ("gpu", "gib", "reason"),
    [
        (
            "L40S",
            96,
            "gpu_memory_gib 96 is more than the 48 GB of L40S; give less, or gpu_model unnamed for another type",
        ),
        ("V100", 40, "gpu_memory_gib 40 is more than the 32 GB of Tesla-V100-SXM2-32GB or Tesla-V100-SXM2-16GB; give"),
        ("V100", 15, "Tesla-V100-SXM2-32GB (compute capability 7.0) has no bfloat16"),
        ("T4", 14, "Tesla-T4 (compute capability 7.5) has no bfloat16"),
    ],
)
def test_memory_that_a_type_cannot_have_and_old_types_are_refused(gpu, gib, reason):
    found = recommend(gpu_model=gpu, gpu_memory_gib=gib)
    assert (found.outcome, found.can_recommend) == ("outside_domain", 0)
    assert found.reason.startswith(reason)


@pytest.mark.parametrize("version", ["1.1.0", "2.0.0"])
def test_earlier_versions_refuse_it(version):
    reason = f"gpu_memory_gib is not in the domain of version {version}; it is known from version 3.0.0"
    for gpu in ({}, {"gpu_model": "L40S"}):
        found = recommend(**gpu, gpu_memory_gib=40, model_version=version)
        assert (found.outcome, found.reason.partition("; gpu_model=")[0]) == ("outside_domain", reason)


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        (0, ""), (-8, ""), (0.5, ""), ("many", ""), (True, ""), (float("inf"), ""), ("80GB", ""), ([80], ""),
        (1e300, ""),
        (24564, " (24564 MiB are 23.99 GiB)"), (85_899_345_920, " (85899345920 bytes are 80.00 GiB)"),
    ],
)  # fmt: skip
def test_nonsense_is_refused_with_the_range_and_the_likely_unit(given, hint):
    with pytest.raises(ValueError, match=r"^gpu_memory_gib: must be a number of GiB from 1 to 1024, got ") as refused:
        Workload.parse(**JOB, gpu_memory_gib=given)
    assert str(refused.value).endswith(hint or refused.value.args[0][-3:])
    table = autoconf.recommend(pd.DataFrame([{**JOB, "gpu_memory_gib": given}]).astype(object))
    assert table["outcome"].tolist() == ["bad_value"]
    assert table["reason"][0] == str(refused.value)


def test_a_gpu_needs_a_name_or_memory():
    with pytest.raises(ValueError, match=r"^gpu_model: is required$"):
        Workload.parse(**JOB, gpu_memory_gib=" ")
    with pytest.raises(ValueError, match="gpu_model"):
        autoconf.recommend(pd.DataFrame([JOB]))


def test_a_table_mixes_names_and_memory():
    rows = [{"gpu_model": "L40S"}, {"gpu_memory_gib": 24}, {"gpu_model": "Acme X9", "gpu_memory_gib": "79"}, {}]
    table = pd.DataFrame([{**JOB, **row} for row in rows])
    found = autoconf.recommend(table)
    assert found["outcome"].tolist() == ["ok", "ok", "ok", "bad_value"]
    assert found["gpus"].tolist()[:3] == [recommend(**row).gpus for row in rows[:3]]
    assert autoconf.recommend(table[1:2].drop(columns="gpu_model"))["gpus"].tolist() == [
        recommend(gpu_memory_gib=24).gpus
    ]


def test_every_query_about_a_gpu_takes_it():
    job = Job(**BASE, gpu_memory_gib=24)
    batch = autoconf.largest_batch(job, number_gpus=4)
    assert batch.per_device_train_batch_size > 0
    each = batch.per_device_train_batch_size
    held = Job(**BASE, gpu_memory_gib=24, per_device_train_batch_size=each)
    assert autoconf.avoid_oom(held, number_gpus=4).gpus == 4
    assert (
        autoconf.avoid_oom(held.model_copy(update={"per_device_train_batch_size": each + 1}), number_gpus=4).gpus != 4
    )
    longest = Job(model_name="llama-7b", method="lora", gpu_memory_gib=24, batch_size=8, model_version=VERSION)
    assert autoconf.largest_sample(longest, number_gpus=4).tokens_per_sample >= 4096
    assert autoconf.explain(Workload(**JOB, gpu_memory_gib=24)).at
    assert autoconf.throughput(Workload(**JOB, gpu_memory_gib=24), number_gpus=4).reason == (
        "throughput is not known for a GPU that only gpu_memory_gib describes: name its type in gpu_model"
    )


def test_queries_that_find_the_gpu_type_refuse_it():
    for ask in (autoconf.cheapest_gpu, autoconf.plan):
        with pytest.raises(ValueError, match=r"^gpu_memory_gib: describes a GPU, which is the output of this query"):
            ask(Job(**JOB, gpu_memory_gib=24))
    found = autoconf.cheapest_gpu(pd.DataFrame([{**JOB, "gpu_memory_gib": 24}]))
    assert found["outcome"].tolist() == ["bad_value"]


def test_ado_and_the_command_take_it(tmp_path):
    fields = {**JOB, "gpu_memory_gib": 24}
    expected = recommend(gpu_memory_gib=24)
    assert min_gpu_recommender(**fields)["gpus"] == expected.gpus
    assert min_gpu_recommender(**fields, gpu_model="unnamed")["gpus"] == expected.gpus
    assert memory_estimator(**fields, number_gpus=4)["usable_memory_gib"] == 24
    options = [f"--{field.replace('_', '-')}={value}" for field, value in fields.items()]
    saved = tmp_path / "job.yaml"
    result = CliRunner().invoke(app, ["recommend", *options, "--json", f"--save-job={saved}"])
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert (answer["gpus"], answer["gpu_model"], answer["gpu_memory_gib"]) == (expected.gpus, "unnamed", 24)
    assert "gpu_memory_gib: 24.0\n" in saved.read_text()
    refused = CliRunner().invoke(app, ["recommend", *options, "--gpu-memory-gib=24564"])
    assert refused.exit_code == 2
    assert "24564 MiB are 23.99 GiB" in refused.output
