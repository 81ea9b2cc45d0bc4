"""Jobs that name the modules with LoRA adapters."""

from __future__ import annotations

import pandas as pd
import pytest

from autoconf import Workload, estimate, recommend

JOB = {
    "model_name": "mistral-7b-v0.1", "method": "lora", "gpu_model": "NVIDIA-A100-80GB-PCIe", "tokens_per_sample": 4096,
    "per_device_train_batch_size": 2, "model_version": "3.0.0", "stack": "reference",
    "sharding": "fsdp2",
}  # fmt: skip


def ask(**fields):
    return estimate(Workload.parse(**{**JOB, **fields}), 1)


def test_a_list_that_is_a_group_is_answered_as_that_group():
    for names, group in (("v_proj, q_proj", "default"), (["k_proj", "o_proj", "q_proj", "v_proj"], "attention")):
        of_list, of_group = ask(lora_targets=names), ask(lora_targets=group)
        assert of_list.needed_memory_gib == of_group.needed_memory_gib
        assert of_list.notes == of_group.notes


def test_another_list_says_that_activations_are_an_upper_bound():
    found = ask(lora_targets="q_proj,gate_proj")
    assert found.notes[0] == (
        "activations are those of lora_targets all-linear, an upper bound; adapters are exactly those of "
        "gate_proj,q_proj"
    )
    assert ask(lora_targets="q_proj").needed_memory_gib < found.needed_memory_gib
    assert found.needed_memory_gib < ask(lora_targets="all-linear").needed_memory_gib


def test_a_module_that_the_model_does_not_have_is_named():
    found = recommend(Workload.parse(**{**JOB, "model_name": "pythia-1.4b", "lora_targets": "q_proj,v_proj"}))
    assert found.outcome == "outside_domain"
    assert found.reason == (
        "lora_targets 'q_proj,v_proj' of pythia-1.4b is not in the domain of version 3.0.0: its modules that can have "
        "adapters are query_key_value, dense, dense_h_to_4h, dense_4h_to_h"
    )


def test_version_2_0_0_knows_lists_that_are_groups():
    assert ask(lora_targets="q_proj,v_proj", model_version="2.0.0").outcome == "ok"
    refused = ask(lora_targets="o_proj", model_version="2.0.0")
    assert "which has default, attention and all-linear; it is known from version 3.0.0" in refused.reason


def test_a_table_may_have_lists():
    lists = ["q_proj,v_proj", "default", "[o_proj]", "nothing!", None]
    table = pd.DataFrame([{**JOB, "lora_targets": value} for value in lists])
    found = recommend(table)
    assert found["outcome"].tolist() == ["ok", "ok", "ok", "bad_value", "ok"]
    assert "names of modules such as q_proj,v_proj" in found["reason"][3]


@pytest.mark.parametrize("value", [".*_proj", "q_proj;v_proj", 3, ["q_proj", 1], {"q_proj": 1}, "q proj!"])
def test_other_values_are_refused(value):
    with pytest.raises(ValueError, match="lora_targets: must be default, attention, all-linear, or names of modules"):
        Workload.parse(**{**JOB, "lora_targets": value})
