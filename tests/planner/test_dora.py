"""Jobs whose adapters are DoRA's."""

from __future__ import annotations

import re

import pytest

from autoconf import Workload, estimate, recommend

JOB = {
    "model_name": "mistral-7b-v0.1", "method": "lora", "gpu_model": "NVIDIA-A100-80GB-PCIe", "tokens_per_sample": 4096,
    "per_device_train_batch_size": 2, "model_version": "3.0.0", "sharding": "ddp",
}  # fmt: skip


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize("stack", ["reference", "trl", "llama-factory"])
@pytest.mark.parametrize("checkpointing", ["none", "non-reentrant"])
@pytest.mark.parametrize("targets", ["default", "all-linear", "q_proj,down_proj"])
def test_dora_needs_more_than_lora(method, stack, checkpointing, targets):
    fields = {"method": method, "stack": stack, "gradient_checkpointing": checkpointing, "lora_targets": targets}
    for gpus in (1, 2):
        lora, dora = (
            estimate(Workload.parse(**{**JOB, **fields, "use_dora": given}), gpus).needed_memory_gib
            for given in ("no", True)
        )
        assert lora <= dora
        assert lora < dora or checkpointing != "none"


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize("stack", ["reference", "trl"])
@pytest.mark.parametrize("checkpointing", ["none", "non-reentrant"])
def test_dora_needs_more_than_lora_under_fsdp2(method, stack, checkpointing):
    fields = {"method": method, "stack": stack, "gradient_checkpointing": checkpointing, "sharding": "fsdp2"}
    lora, dora = (
        estimate(Workload.parse(**{**JOB, **fields, "use_dora": given}), 4).needed_memory_gib for given in (False, True)
    )
    assert lora < dora


def test_an_answer_says_that_it_is_a_bound():
    assert any("DoRA is bounded" in note for note in estimate(Workload.parse(**JOB, use_dora=True), 1).notes)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sharding": "fsdp1"}, "sharding 'fsdp1' .*PEFT reads the shape .* and stops with an IndexError"),
        ({"sharding": "shard_grad_op"}, "use_dora with fsdp_strategy 'shard_grad_op'"),
        ({"sharding": "fsdp2", "offload": "optimizer_and_parameters"}, "use_dora with offload"),
        ({"sharding": "zero3", "mixed_precision": "bf16"}, "use_dora with sharding 'zero3'"),
        ({"objective": "orpo"}, "use_dora with objective 'orpo'"),
        ({"model_name": "mixtral-8x7b-instruct-v0.1", "lora_targets": "all-linear"}, "not all are linear layers"),
        ({"model_version": "2.0.0"}, "use_dora True is not in the domain of version 2.0.0, which has False"),
    ],
)  # fmt: skip
def test_what_was_not_compared_is_refused_by_name(fields, said):
    found = recommend(Workload.parse(**{**JOB, **fields}, use_dora=True))
    assert not found.can_recommend and re.search(said, found.reason)


def test_full_fine_tuning_has_no_adapters():
    with pytest.raises(ValueError, match="method 'full' and use_dora True exclude each other"):
        Workload.parse(**{**JOB, "method": "full"}, use_dora=True)
