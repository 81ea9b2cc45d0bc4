"""Rules exclude candidates without the predictor."""

from __future__ import annotations

import numpy as np
import pytest

from autoconf.jobs.presets import SETTINGS, training_stack
from autoconf.memory.candidates import Candidates
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
    assert reason.startswith("runs out of memory while loading: each GPU holds all 4-bit weights, 3")
    assert rules.passing(candidate("qlora", 8, 44.4, sharding=sharding)).all()


def test_other_jobs_are_loaded_unit_by_unit() -> None:
    assert rules.passing(candidate("lora", 16, 23.5, sharding="fsdp2")).all()
    assert rules.passing(candidate("qlora", 8, 23.5, compose_by=1, sharding="fsdp2")).all()  # as version 2.0.0
