"""What candidates of several jobs need at once, and how many tokens fit."""

from __future__ import annotations

import numpy as np
import pytest

from autoconf.memory import needs
from autoconf.memory.fragmentation import Surface
from autoconf.memory.gpu_memory import GpuMemory, Moments
from autoconf.memory.needs import Resident, most_tokens, needed_bytes
from autoconf.memory.reserve import Reserve
from autoconf.memory.units import GIB, Floats, Integers

RESERVE = Reserve((0.0, 1.0, 20.0), (1.0, 1.5, 20.5), (2.0, 3.0, 22.0), peak_share=0.02)
GRID = np.array([0.0, 10.0, 40.0]), np.array([0.0, 8.0])
SURFACES = [Surface(*GRID, np.array(gib)) for gib in ([[0.0, 1.0, 9.0], [2.0, 3.0, 9.0]], [[1.0, 4.0, 5.0]] * 2)]


def owned(gpus: Integers) -> Floats:
    return np.array([1 / gpus, np.ones(len(gpus))])


def memories(fragmented: bool) -> list[GpuMemory]:
    """Jobs with different moments, curves, nodes and surfaces."""
    random = np.random.default_rng(0)

    def moments(count: int, **others: float | Floats) -> Moments:
        of_tokens = random.uniform(0, [[2 * GIB, 0.001 * GIB]], (count, 2))
        return Moments(of_tokens, weights=5.0 * GIB, weights_sharded=random.uniform(0, 20) * GIB, **others)

    found = [
        GpuMemory([moments(5)], Resident(0, 9 * GIB, states_sharded=4 * GIB)),
        GpuMemory([moments(1, gradients_curves=np.array([GIB, 2.0 * GIB]))], Resident(0, 0, GIB), curves=owned),
        GpuMemory([moments(30)], Resident(0, 9 * GIB, states_sharded=6 * GIB), per_node=2),
    ]
    chosen = [*SURFACES, SURFACES[0]] if fragmented else [None] * 3
    return [memory.fragmented(surface) for memory, surface in zip(found, chosen, strict=True)]


@pytest.mark.parametrize("fragmented", [False, True])
@pytest.mark.parametrize("at_once", [1, 7, 10**6])
def test_candidates_of_several_jobs_get_what_each_gets_alone(monkeypatch, at_once, fragmented):
    monkeypatch.setattr(needs, "_AT_ONCE", at_once)
    jobs, random = memories(fragmented), np.random.default_rng(1)
    of, gpus = random.integers(0, 3, 60), random.choice([1, 2, 4, 6], 60)
    tokens, limits = random.uniform(0, 40_000, 60), random.uniform(2, 90, (2, 60)) * GIB
    needed, most = needed_bytes(jobs, of, gpus, tokens, RESERVE), most_tokens(jobs, of, gpus, limits, RESERVE)
    for index in range(60):
        one = np.array([index])
        assert needed[index] == pytest.approx(jobs[of[index]].needed_bytes(gpus[one], tokens[one], RESERVE)[0])
        assert most[:, one] == pytest.approx(jobs[of[index]].most_tokens(gpus[one], limits[:, one], RESERVE))
        assert needed[index] == pytest.approx(sum(jobs[of[index]].parts(gpus[index], tokens[index], RESERVE).values()))


def test_no_candidates_need_nothing():
    nothing = np.zeros(0, np.int64)
    assert needed_bytes([], nothing, nothing, nothing, RESERVE).shape == (0,)
    assert most_tokens([], nothing, nothing, np.zeros((2, 0)), RESERVE).shape == (2, 0)
