"""Jobs with adapters on some of the layers."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from autoconf import Workload, estimate, recommend
from autoconf.jobs.stack import Stack
from autoconf.memory.model import gpu_job
from autoconf.predictor import registry

JOB = {
    "model_name": "mistral-7b-v0.1", "method": "lora", "gpu_model": "NVIDIA-A100-80GB-PCIe", "tokens_per_sample": 4096,
    "per_device_train_batch_size": 2, "model_version": "3.0.0",
}  # fmt: skip
ALL = 32  # layers of the model
HALF, LAST = "16-31", "31"


def needed(gpus, **fields):
    return estimate(Workload.parse(**{**JOB, **fields}), gpus).needed_memory_gib


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize(
    ("sharding", "gpus", "targets", "dora"),
    [
        ("ddp", 1, "default", True),
        ("ddp", 8, "q_proj,down_proj", False),
        ("fsdp1", 2, "all-linear", False),
        ("fsdp2", 8, "attention", False),
    ],
)
@pytest.mark.parametrize("checkpointing", ["none", "non-reentrant"])
def test_fewer_layers_never_need_more(method, sharding, gpus, targets, dora, checkpointing):
    fields = {
        "method": method, "sharding": sharding, "gradient_checkpointing": checkpointing, "use_dora": dora,
        "lora_targets": targets,
    }  # fmt: skip
    needs = [needed(gpus, **fields, lora_layers=layers) for layers in ("all", "0-30", HALF, LAST)]
    assert needs == sorted(needs, reverse=True)


@pytest.mark.parametrize("named", ["", "q_proj,down_proj"])
def test_adapters_gradients_and_states_are_those_of_the_layers(named):
    table = registry.load("3.0.0").memory.table
    targets = {"lora_targets": tuple(named.split(","))} if named else {}
    every, some = (
        gpu_job(table, JOB["model_name"], "lora", Stack(lora_layers=layers, lora_r=16, **targets), several=False)
        for layers in ((), tuple(range(8)))
    )
    assert some.resident.states == every.resident.states / 4
    frozen = 2 * 7_241_732_096
    assert some.resident.whole - frozen == pytest.approx((every.resident.whole - frozen) / 4, rel=1e-3)


def test_layers_before_the_first_adapter_keep_nothing_unless_they_are_recomputed():
    table, tokens = registry.load("3.0.0").memory.table, np.array([65_536.0])

    def peak(**settings):
        job = gpu_job(table, JOB["model_name"], "lora", Stack(**settings), several=False)
        return job.memory.peak_bytes(np.array([1]), tokens)[0]

    for checkpointing, least, most in (("none", 0.4, 0.6), ("non-reentrant", 0.99, 1.0)):
        every, later, sooner = (
            peak(gradient_checkpointing=checkpointing, lora_layers=layers) - 2 * 7_241_732_096
            for layers in ((), tuple(range(16, ALL)), tuple(range(16)))
        )
        assert least < later / every <= most and sooner / every > 0.99
    both = {"trained_modules": "embeddings", "gradient_checkpointing": "none"}  # whose gradient runs through all layers
    assert peak(**both, lora_layers=(31,)) > 0.95 * peak(**both)


def test_all_layers_by_number_are_all():
    assert needed(2, lora_layers="0-31") == needed(2, lora_layers="all") == needed(2)
    assert needed(2, method="full", lora_layers="all") == needed(2, method="full")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"lora_layers": "30-32"}, "lora_layers '30-32' of mistral-7b-v0.1 .*: its layers are 0 to 31"),
        (
            {"lora_layers": "1", "model_name": "granite-4.0-h-1b"},
            "its layers are of several kinds, whose adapters differ",
        ),
        ({"lora_layers": "1", "sharding": "shard_grad_op"}, "lora_layers '1' with fsdp_strategy 'shard_grad_op'"),
        ({"lora_layers": "1", "sharding": "zero2", "mixed_precision": "bf16"}, "lora_layers '1' with sharding 'zero2'"),
        (
            {"lora_layers": "1", "model_version": "2.0.0"},
            "lora_layers '1' is not in the domain .* which has all; it is",
        ),
    ],
)
def test_what_is_not_counted_is_refused_by_name(fields, said):
    found = recommend(Workload.parse(**{**JOB, **fields}))
    assert found.outcome == "outside_domain"
    assert re.search(said, found.reason)


def test_the_setting_is_read_in_any_spelling():
    table = pd.DataFrame([{**JOB, "lora_layers": value} for value in ([16, 17], "16-17", 31.0, None, "-1")])
    assert recommend(table)["outcome"].tolist() == ["ok", "ok", "ok", "ok", "bad_value"]
    with pytest.raises(ValueError, match="method 'full' and lora_layers '1' exclude each other"):
        Workload.parse(**{**JOB, "method": "full"}, lora_layers=1)


def test_an_answer_says_that_activations_are_a_bound():
    said = "layers without them as layers with them, an upper bound"
    assert any(said in note for note in estimate(Workload.parse(**JOB, lora_layers=LAST), 1).notes)
    assert not any(said in note for note in estimate(Workload.parse(**JOB, lora_layers="all"), 1).notes)
