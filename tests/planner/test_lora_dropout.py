"""Jobs with dropout of LoRA adapters."""

from __future__ import annotations

import pytest

from autoconf import Workload, estimate

JOB = {
    "model_name": "mistral-7b-v0.1", "method": "lora", "gpu_model": "NVIDIA-A100-80GB-PCIe", "tokens_per_sample": 4096,
    "per_device_train_batch_size": 2, "model_version": "3.0.0",
}  # fmt: skip


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize("sharding", ["ddp", "fsdp1", "fsdp2", "zero1", "zero2", "zero3"])
@pytest.mark.parametrize("stack", ["reference", "trl"])
@pytest.mark.parametrize("checkpointing", ["none", "non-reentrant"])
def test_dropout_never_needs_less(method, sharding, stack, checkpointing):
    settings = {
        "stack": stack,
        "sharding": sharding,
        "mixed_precision": "bf16",
        "gradient_checkpointing": checkpointing,
    }
    for gpus in (1, 2):
        without, little, much = (
            estimate(Workload.parse(**{**JOB, **settings, "method": method, "lora_dropout": dropout}), gpus)
            for dropout in (0, 0.05, "0.5")
        )
        assert without.needed_memory_gib <= little.needed_memory_gib == much.needed_memory_gib
    if checkpointing == "none":
        assert without.needed_memory_gib < little.needed_memory_gib


def test_dropout_is_that_of_the_stack_unless_given():
    of_stack, given = (estimate(Workload.parse(**JOB, stack="trl", **more), 1) for more in ({}, {"lora_dropout": 0.05}))
    assert of_stack.needed_memory_gib == given.needed_memory_gib


@pytest.mark.parametrize("value", [1, -0.1, "much", True, "nan", "1e400"])
def test_other_values_are_refused(value):
    with pytest.raises(ValueError, match="lora_dropout: must be a number >= 0 and < 1"):
        Workload.parse(**JOB, lora_dropout=value)


def test_full_fine_tuning_has_no_adapters():
    with pytest.raises(ValueError, match=r"method 'full' and lora_dropout 0\.1 exclude each other"):
        Workload.parse(**{**JOB, "method": "full"}, lora_dropout=0.1)
