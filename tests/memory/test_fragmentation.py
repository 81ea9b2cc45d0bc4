"""A margin that depends on fragmentation, and memory outside PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

from autoconf.jobs.stack import Stack
from autoconf.memory.fragmentation import Fragmentation, OutsidePyTorch, Surface, inverse, kind_of
from autoconf.memory.gpu_memory import GpuMemory, Moments
from autoconf.memory.needs import Resident
from autoconf.memory.reserve import Reserve
from autoconf.memory.units import GIB

ACTIVATIONS = (0.0, 10.0, 20.0, 40.0)
BY_STATES = {0.0: (0.5, 1.5, 1.5, 9.5), 8.0: (2.5, 2.5, 3.5, 11.5)}
SURFACE = Surface(np.array(ACTIVATIONS), np.array(list(BY_STATES)), np.array(list(BY_STATES.values())))
STATES = 4.0  # halfway on one GPU, and on two a quarter of the way
RESERVE = Reserve((0.0, 1.0, 20.0), (1.0, 1.5, 20.5), (2.0, 3.0, 22.0))  # by fragmentation
STEP = Moments(activations=np.zeros((1, 2)), weights=30.0 * GIB)  # of the optimizer, without activations
FORWARD = Moments(activations=np.array([[0.0, 0.001 * GIB]]), weights=20.0 * GIB)


def memory() -> GpuMemory:
    return GpuMemory([STEP, FORWARD], Resident(0, STATES * GIB, states_sharded=STATES * GIB)).fragmented(SURFACE)


def fragmentation(activations: float, gpus: int) -> float:
    none, most = (np.interp(activations, ACTIVATIONS, gib) for gib in BY_STATES.values())
    return float(none + (most - none) * STATES / gpus / 8)


@pytest.mark.parametrize("gpus", [1, 2])
def test_each_moment_needs_its_own_fragmentation(gpus: int) -> None:
    tokens = np.array([0, 5_000, 12_000, 30_000, 60_000])
    margins = (RESERVE.one_gpu_gib, RESERVE.several_gpus_gib)[gpus - 1]

    def margin(activations: float) -> float:
        return float(np.interp(fragmentation(activations, gpus), RESERVE.activations_gib, margins))

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


@pytest.mark.parametrize("gpus", [[1], [2, 4, 8]])
def test_most_tokens_is_where_the_need_reaches_the_limit(gpus: list[int]) -> None:
    for gib in np.linspace(25, 90, 40):
        counts = np.array(gpus)
        (most,) = memory().most_tokens(counts, np.full((1, len(gpus)), gib * GIB), RESERVE)
        one, little, more = (
            memory().needed_bytes(counts, tokens, RESERVE)
            for tokens in (np.ones(len(gpus)), most * (1 - 1e-6), most * (1 + 1e-6))
        )
        none = most == 0
        assert (one[none] > gib * GIB).all()
        assert (little[~none] <= gib * GIB).all() and (gib * GIB <= more[~none] * (1 + 1e-9)).all()


def test_more_states_never_need_less_and_beyond_the_grid_count_as_its_end() -> None:
    activations = np.full((1, 50), 15.0)
    found = SURFACE.at(activations, np.linspace(0, 20, 50))[0]
    assert (np.diff(found) >= 0).all() and found[0] == 1.5 and found[-1] == 3.0


def test_the_inverse_of_a_flat_piece_is_one_of_its_points() -> None:
    xs, ys = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([[0.0], [5.0], [5.0], [6.0]])
    assert inverse(np.array([[5.0], [5.5], [-1.0], [9.0]]), xs, ys)[:, 0].tolist() == [2.0, 2.5, 0.0, 3.0]


def test_a_larger_gpu_never_has_less_left_for_pytorch() -> None:
    outside = OutsidePyTorch((0.0, 24.0, 31.0, 80.0), (0.7, 1.0, 0.7, 0.7), (2.7, 1.6, 2.7, 4.4))
    usable = np.linspace(5, 200, 4000)
    for gpus in (1, 8):
        left = outside.left_gib(usable, np.full(len(usable), gpus))
        assert (np.diff(left) >= 0).all() and (left < usable).all()
    assert outside.left_gib(np.array([80.0]), np.array([2])) == pytest.approx(75.6)


def test_surfaces_are_kept_by_kind() -> None:
    gib = {"none": ((0.0, 0.1),), "fsdp1": ((1.0, 2.0),), "fsdp1 of 4-bit weights": ((3.0, 4.0),)}
    learned = Fragmentation((0.0, 1.0), (0.0,), gib)

    def of(stack: Stack, method: str, *, several: bool = True) -> list[float]:
        return (
            learned.surface(kind_of(stack, method, several=several)).at(np.array([[0.0, 1.0]]), np.zeros(2))[0].tolist()
        )

    assert of(Stack(sharding="fsdp1"), "full", several=False) == [0.0, 0.1]
    expandable = Stack(sharding="fsdp1", allocator="expandable_segments")  # as without where no surface was learned
    assert of(expandable, "lora") == [1.0, 2.0]
    assert of(Stack(sharding="zero3", mixed_precision="bf16"), "full") == [1.0, 2.0]
    assert of(Stack(sharding="fsdp1"), "qlora") == [3.0, 4.0]
