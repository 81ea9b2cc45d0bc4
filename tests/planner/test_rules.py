"""Rules exclude candidates without the predictor."""

from __future__ import annotations

import numpy as np
import pytest

from autoconf.jobs.presets import SETTINGS, training_stack
from autoconf.memory.candidates import Candidates
from autoconf.memory.fragmentation import OutsidePyTorch
from autoconf.memory.model import StackMemory
from autoconf.planner import rules
from autoconf.predictor import registry


def candidate(method: str, gpus: int, usable_gib: float, compose_by: int = 2, **settings: str) -> Candidates:
    memory = registry.load("2.0.0").memory
    assert isinstance(memory, StackMemory)
    later = StackMemory(memory.table, compose_by)
    stack = training_stack(method, False, "trl", *[settings.get(name) for name in SETTINGS])
    rows = np.array([later.row("llama2-70b", method, stack)])
    return Candidates(later, rows, np.array([gpus]), np.array([512.0]), np.array([usable_gib]))


@pytest.mark.parametrize("sharding", ["fsdp1", "fsdp2"])
def test_a_quantized_model_must_fit_on_each_gpu_before_it_is_sharded(sharding: str) -> None:
    (reason,) = rules.reasons(candidate("qlora", 8, 23.5, sharding=sharding))
    assert reason.startswith("runs out of memory while loading: each GPU holds all 4-bit weights before FSDP ")
    assert reason.endswith(" GiB, and one has 23.5 GiB")
    assert rules.passing(candidate("qlora", 8, 44.4, sharding=sharding)).all()


def test_weights_on_the_gpu_must_fit_before_they_are_sharded() -> None:
    """llama2-70b has 128.5 GiB in bfloat16, and 0.2 of adapters."""
    on_gpu = candidate("lora", 16, 128.0, sharding="fsdp2", loading="gpu", torch_dtype="bfloat16")
    (reason,) = rules.reasons(on_gpu)
    assert reason == (
        "runs out of memory while loading: each GPU holds all weights before FSDP shards them, 128.7 GiB, and one has "
        "128 GiB"
    )
    for loading in ("cpu", "rank0"):
        moved = candidate("lora", 16, 128.0, sharding="fsdp2", loading=loading, torch_dtype="bfloat16")
        assert rules.passing(moved).all()


def test_what_is_outside_pytorch_is_no_room_for_loading() -> None:
    found = candidate("lora", 16, 130.0, sharding="fsdp2", loading="gpu", torch_dtype="bfloat16")
    assert rules.passing(found).all()
    assert isinstance(found.memory, StackMemory)
    found.memory.outside = OutsidePyTorch((0.0,), (0.5,), (2.0,))
    assert not rules.passing(found).any()


def test_other_jobs_are_loaded_unit_by_unit() -> None:
    assert rules.passing(candidate("lora", 16, 23.5, sharding="fsdp2")).all()
    assert rules.passing(candidate("qlora", 8, 23.5, compose_by=1, sharding="fsdp2")).all()  # as version 2.0.0
