"""A margin that depends on fragmentation, and memory outside PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

from autoconf.jobs.stack import Stack
from autoconf.memory.fragmentation import Curve, Fragmentation, OutsidePyTorch, sharding_of
from autoconf.memory.gpu_memory import GpuMemory, Moments, Resident
from autoconf.memory.reserve import Reserve
from autoconf.memory.units import GIB

CURVE = Curve((0.0, 10.0, 20.0, 40.0), (0.5, 1.5, 1.5, 9.5))
RESERVE = Reserve((0.0, 1.0, 20.0), (1.0, 1.5, 20.5), (2.0, 3.0, 22.0))  # by fragmentation
STEP = Moments(activations=np.zeros((1, 2)), weights=30.0 * GIB)  # of the optimizer, without activations
FORWARD = Moments(activations=np.array([[0.0, 0.001 * GIB]]), weights=20.0 * GIB)


def memory() -> GpuMemory:
    return GpuMemory([STEP, FORWARD], Resident(0, 0)).fragmented(CURVE)


@pytest.mark.parametrize("gpus", [1, 2])
def test_each_moment_needs_its_own_fragmentation(gpus: int) -> None:
    tokens = np.array([0, 5_000, 12_000, 30_000, 60_000])
    margins = (RESERVE.one_gpu_gib, RESERVE.several_gpus_gib)[gpus - 1]

    def margin(activations: float) -> float:
        return float(np.interp(CURVE.at(np.array(activations)), RESERVE.activations_gib, margins))

    expected = [max(30 + margin(0), 20 + 0.001 * some + margin(0.001 * some)) for some in tokens.tolist()]
    needed = memory().needed_bytes(np.full(5, gpus), tokens, RESERVE) / GIB
    assert needed == pytest.approx(expected)


def test_the_parts_add_up_and_name_fragmentation() -> None:
    for tokens in (0.0, 15_000.0, 60_000.0):
        parts = memory().parts(2, tokens, RESERVE)
        needed = memory().needed_bytes(np.array([2]), np.array([tokens]), RESERVE)
        assert sum(parts.values()) == pytest.approx(needed[0])
        assert parts["reserve"] == pytest.approx(2 * GIB)  # on two GPUs without any fragmentation
    assert parts["fragmentation"] == pytest.approx(10 * GIB * (22 - 3) / 19, rel=0.2)
    without = GpuMemory([STEP, FORWARD], Resident(0, 0)).parts(2, 60_000.0, RESERVE)
    assert without["fragmentation"] == 0


def test_most_tokens_is_where_the_need_reaches_the_limit() -> None:
    for gib in np.linspace(25, 90, 40):
        (most,) = memory().most_tokens(np.array([1]), np.array([gib * GIB]), RESERVE)
        if most == 0:
            assert memory().needed_bytes(np.array([1]), np.array([1.0]), RESERVE)[0] > gib * GIB
        else:
            needed = memory().needed_bytes(np.array([1, 1]), most * np.array([1 - 1e-6, 1 + 1e-6]), RESERVE)
            assert needed[0] <= gib * GIB <= needed[1] * (1 + 1e-9)


def test_a_larger_gpu_never_has_less_left_for_pytorch() -> None:
    outside = OutsidePyTorch((0.0, 24.0, 31.0, 80.0), (0.7, 1.0, 0.7, 0.7), (2.7, 1.6, 2.7, 4.4))
    usable = np.linspace(5, 200, 4000)
    for gpus in (1, 8):
        left = outside.left_gib(usable, np.full(len(usable), gpus))
        assert (np.diff(left) >= 0).all() and (left < usable).all()
    assert outside.left_gib(np.array([80.0]), np.array([2])) == pytest.approx(75.6)


def test_curves_are_kept_by_sharding() -> None:
    curves = Fragmentation((0.0, 1.0), {"none": (0.0, 0.1), "fsdp1": (1.0, 2.0)})
    assert curves.curve(sharding_of(Stack(sharding="fsdp1"), several=False)).gib == (0.0, 0.1)
    expandable = Stack(sharding="fsdp1", allocator="expandable_segments")  # as without where no curve was learned
    assert curves.curve(sharding_of(expandable, several=True)).gib == curves.curve("fsdp1").gib
    zero = Stack(sharding="zero3", mixed_precision="bf16")
    assert curves.curve(sharding_of(zero, several=True)).gib == (1.0, 2.0)
