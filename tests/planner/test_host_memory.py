"""Every answer says what a job takes on the host of a worker, and a limit of it refuses layouts that take more."""

from __future__ import annotations

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

JOB = {
    "model_name": "llama-7b", "method": "full", "gpu_model": "NVIDIA-A100-SXM4-80GB", "tokens_per_sample": 1024,
    "batch_size": 8, "sharding": "zero2", "mixed_precision": "bf16", "model_version": "3.0.0",
}  # fmt: skip
OFFLOADED = {**JOB, "offload": "optimizer"}


def test_an_estimate_is_of_the_processes_of_one_worker():
    one, both = (
        autoconf.estimate(Workload(**OFFLOADED, gpus_per_worker=each), number_gpus=8).host_memory_gib for each in (4, 8)
    )
    assert both == pytest.approx(2 * one)
    assert both > 18 * 6.7e9 / 2**30  # bytes of each parameter
    assert autoconf.estimate(Workload(**JOB), number_gpus=8).host_memory_gib == 0


def test_a_recommendation_says_it_in_every_form():
    found = autoconf.recommend(Workload(**OFFLOADED))
    sentence = f"the job takes {found.host_memory_gib:.1f} GiB of the host's memory on the worker"
    assert sentence in found.notes
    assert sentence in autoconf.recommend(pd.DataFrame([OFFLOADED]))["notes"][0]
    assert sentence in min_gpu_recommender(**OFFLOADED)["notes"]
    explained = autoconf.explain(Workload(**OFFLOADED))
    assert explained.at[found.gpus * found.workers].host_memory_gib == found.host_memory_gib
    total = found.gpus * found.workers
    assert memory_estimator(**OFFLOADED, number_gpus=total)["host_memory_gib"] == found.host_memory_gib
    assert autoconf.recommend(Workload(**JOB)).host_memory_gib is None


def test_a_limit_refuses_layouts_with_the_reason():
    needed = autoconf.recommend(Workload(**OFFLOADED)).host_memory_gib
    assert autoconf.recommend(Workload(**OFFLOADED, host_memory_limit_gib=needed + 20)).can_recommend
    refused = autoconf.recommend(Workload(**OFFLOADED, host_memory_limit_gib=needed / 2))
    assert refused.outcome == "fits_nowhere"
    assert "the host of a worker holds" in refused.reason and "host_memory_limit_gib is 73" in refused.reason
    held = autoconf.estimate(Workload(**OFFLOADED, host_memory_limit_gib=needed / 2), number_gpus=8)
    assert held.fits == 0 and held.probability == 0 and "host_memory_limit_gib" in held.reason


def test_smaller_workers_share_the_memory():
    limit = autoconf.recommend(Workload(**OFFLOADED)).host_memory_gib / 2
    found = autoconf.recommend(Workload(**OFFLOADED, host_memory_limit_gib=limit, gpus_per_worker=2))
    assert found.can_recommend and found.workers > 1 and found.host_memory_gib <= limit


def test_a_larger_limit_never_needs_more_gpus():
    limits = [1, 10, 50, 75, 100, 150, 200, 1000]
    answers = autoconf.recommend(pd.DataFrame([{**OFFLOADED, "host_memory_limit_gib": limit} for limit in limits]))
    totals = (answers["gpus"] * answers["workers"]).fillna(99).tolist()
    assert totals == sorted(totals, reverse=True) and totals[0] == 99


def test_a_job_that_holds_nothing_there_has_no_limit():
    limited = autoconf.recommend(Workload(**JOB, host_memory_limit_gib=1))
    assert limited == autoconf.recommend(Workload(**JOB))


def test_the_largest_batch_and_sample_obey_the_limit():
    fields = {name: value for name, value in OFFLOADED.items() if name != "batch_size"}
    refused = autoconf.largest_batch(Job(**fields, host_memory_limit_gib=10), number_gpus=8)
    assert not refused.can_recommend and "host_memory_limit_gib is 10" in refused.reason
    fields = {name: value for name, value in OFFLOADED.items() if name != "tokens_per_sample"}
    refused = autoconf.largest_sample(Job(**fields, host_memory_limit_gib=10), number_gpus=8)
    assert not refused.can_recommend and "host_memory_limit_gib is 10" in refused.reason


def test_versions_that_do_not_know_it_refuse_a_limit_and_say_nothing():
    old = {**JOB, "sharding": "fsdp2", "model_version": "2.0.0"}
    refused = autoconf.recommend(Workload(**old, host_memory_limit_gib=100))
    assert refused.outcome == "outside_domain"
    assert refused.reason.startswith("host_memory_limit_gib is not in the domain of version 2.0.0; it is known from")
    assert autoconf.estimate(Workload(**old), number_gpus=8).host_memory_gib is None


@pytest.mark.parametrize("value", [0, -1, 65537, "much", float("inf"), 2**37])
def test_a_limit_that_no_node_has_names_the_field(value):
    with pytest.raises(ValueError, match="host_memory_limit_gib: must be a number of GiB from 1 to 65536"):
        Workload(**OFFLOADED, host_memory_limit_gib=value)


def test_the_command_prints_it():
    options = [f"--{name.replace('_', '-')}={value}" for name, value in OFFLOADED.items()]
    result = CliRunner().invoke(app, ["estimate", *options, "--number-gpus=8", "--json"])
    assert json.loads(result.stdout)["host_memory_gib"] > 100


@pytest.mark.parametrize(("sharding", "method"), [
    ("fsdp1", "full"), ("fsdp1", "lora"), ("fsdp2", "full"), ("fsdp2", "lora"), ("zero3", "full"),
])  # fmt: skip
def test_every_model_that_offloads_has_a_figure(sharding, method):
    """Also hybrids whose largest layers have no adapters."""
    models = [*registry.load("3.0.0").domain.models]
    jobs = pd.DataFrame({"model_name": models, "method": method, "sharding": sharding})
    jobs = jobs.assign(
        gpu_model="NVIDIA-H200", tokens_per_sample=128, per_device_train_batch_size=1, max_gpus=64, stack="trl",
        offload="optimizer_and_parameters", model_version="3.0.0", number_gpus=8,
    )  # fmt: skip
    found = autoconf.estimate(jobs)
    answered = found["outcome"] != "outside_domain"
    assert answered.sum() > 100
    assert (found.loc[answered, "host_memory_gib"] > 0).all()
