"""FSDP's and DDP's schedules on top of the memory of one GPU, compared with sums by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from autoconf.memory.gpu_memory import GpuMemory
from autoconf.memory.optimizers import OptimizerBytes
from autoconf.memory.profile import Point, StackMoment, Units
from autoconf.memory.reserve import Reserve
from autoconf.memory.sharding import BytesPerParameter, UnshardedJob, sharded
from autoconf.memory.units import GIB

# 10 layers of 100 parameters, and a root of 50.
UNITS = Units(
    frozen=0, trainable=1050, quantized=0, layer_frozen=0, layer_trainable=100, layer_quantized=0,
    root_frozen=0, root_trainable=50, absmax_bytes=0,
)  # fmt: skip
BF16, MIXED = BytesPerParameter(2, 2, 2, 2), BytesPerParameter(2, 4, 2, 2)
ADAMW = OptimizerBytes(states=4200, step=0)
# A layer in the middle: 30 bytes a token; its own gradients and those of five layers behind are there.
MIDDLE = StackMoment(
    Point.MIDDLE, 7, 30, 0, 0, layer_gradients=200, newest_gradient=200, finished_gradients=1000, root_gradients=100
)


def composed(strategy: str, *, accumulating: bool, moment: StackMoment = MIDDLE, **settings) -> GpuMemory:
    given = {"units": UNITS, "bytes_per_parameter": BF16, "rank": None, "optimizer": ADAMW} | settings
    return sharded(np.array([moment], float), UnshardedJob(accumulating=accumulating, **given), strategy)


def peak(memory: GpuMemory, gpus: int, tokens: int) -> float:
    return float(memory.peak_bytes(np.array([gpus]), np.array([tokens]))[0])


MANY = 1000  # tokens, so that the moment is the peak, and not the optimizer's step


def test_one_gpu_holds_weights_states_activations_and_the_gradients_so_far():
    alone = composed("none", accumulating=False)
    assert peak(alone, 1, MANY) == 2100 + 4200 + (7 + 30 * MANY) + (200 + 1000 + 100)


def test_accumulated_gradients_are_held_in_addition_to_the_newest():
    assert peak(composed("none", accumulating=True), 1, MANY) == 2100 + 4200 + (7 + 30 * MANY) + 2100 + 200


@pytest.mark.parametrize("gpus", [2, 64])
def test_ddp_adds_buckets_as_large_as_the_gradients_and_shards_nothing(gpus):
    for accumulating in (False, True):
        alone = peak(composed("none", accumulating=accumulating), 1, MANY)
        assert peak(composed("ddp", accumulating=accumulating), gpus, MANY) == alone + 2100


@pytest.mark.parametrize(("strategy", "layers"), [("fsdp1", 2), ("fsdp2", 3)])
def test_fsdp_divides_what_it_has_not_gathered(strategy, layers):
    """Two layers and the root are whole, and under FSDP2 a layer's gradients on their strategy through a reduction."""
    for gpus in (2, 8):
        divided = (2100 + 4200 + 1000) / gpus
        whole = (100 + 200 * layers) + (200 + 100) + (7 + 30 * MANY)
        assert peak(composed(strategy, accumulating=False), gpus, MANY) == pytest.approx(divided + whole)


def test_under_accumulation_gradients_are_whole_on_every_gpu():
    for strategy in ("fsdp1", "fsdp2"):
        for gpus in (2, 512):
            assert (
                peak(composed(strategy, accumulating=True), gpus, MANY) >= 2100 + (2100 + 4200) / gpus + 7 + 30 * MANY
            )
        assert composed(strategy, accumulating=True).unsharded_gradients == 2100
        assert composed(strategy, accumulating=False).unsharded_gradients == 0


def test_mixed_precision_shards_gradients_in_float32():
    """Stored ones are twice as large as those that are reduced."""
    plain, mixed = (composed("fsdp2", accumulating=False, bytes_per_parameter=b) for b in (BF16, MIXED))
    assert peak(mixed, 2, MANY) - peak(plain, 2, MANY) == (2100 + 1000) / 2


def test_the_optimizers_step_is_the_peak_where_few_tokens_are():
    step = composed("none", accumulating=False, optimizer=OptimizerBytes(states=4200, step=2100))
    assert peak(step, 1, 1) == 2100 + 2100 + 4200 + 2100
    several = composed("fsdp2", accumulating=False, optimizer=OptimizerBytes(states=4200, step=100_000))
    assert peak(several, 4, 1) == (2100 + 2100 + 4200 + 100_000) / 4


def test_absmax_and_buffers_are_whole_on_every_gpu():
    units = replace(UNITS, absmax_bytes=1000, buffer_bytes=300)
    for strategy, gpus in (("none", 1), ("ddp", 8), ("fsdp1", 8), ("fsdp2", 8)):
        plain, more = (peak(composed(strategy, accumulating=False, units=u), gpus, MANY) for u in (UNITS, units))
        assert more == plain + 1300


def test_adapters_grow_with_their_rank():
    units = replace(
        UNITS, frozen=1050, layer_frozen=100, root_frozen=50, trainable=20, layer_trainable=2, root_trainable=0
    )
    moment = MIDDLE._replace(
        constant_per_rank=5,
        per_token_per_rank=3,
        layer_gradients=4,
        newest_gradient=4,
        finished_gradients=20,
        root_gradients=0,
    )
    ranks = [composed("none", accumulating=False, moment=moment, units=units, rank=r) for r in (1, 2, 9)]
    one, two, nine = (peak(figures, 1, MANY) for figures in ranks)
    per_rank = 20 * 2 + (5 + 3 * MANY) + (4 + 20)
    assert (two - one, nine - one) == (per_rank, 8 * per_rank)


def test_parts_add_up_to_needed_memory():
    figures, reserve = composed("fsdp2", accumulating=True), Reserve((0, 100), (1, 11), (2, 42))
    for gpus, tokens in ((2, 1), (2, MANY), (64, MANY)):
        parts = figures.parts(gpus, tokens, reserve)
        assert list(parts) == [*GpuMemory.PARTS, "fragmentation", "reserve"]
        needed = figures.needed_bytes(np.array([gpus]), np.array([tokens]), reserve)[0]
        assert sum(parts.values()) == pytest.approx(needed)
    assert parts["activations"] == 7 + 30 * MANY and parts["weights"] == 2100 / 64


def test_needed_memory_is_the_peak_and_a_margin_for_the_activations():
    reserve = Reserve(activations_gib=(0, 100), one_gpu_gib=(1, 11), several_gpus_gib=(2, 42))
    tokens = GIB  # 30 GiB of activations
    for strategy, gpus, free in (("none", 1, 1 + 3), ("fsdp2", 2, 2 + 12)):
        figures = composed(strategy, accumulating=False)
        needed = figures.needed_bytes(np.array([gpus]), np.array([tokens]), reserve)[0]
        assert needed == pytest.approx(peak(figures, gpus, tokens) + free * GIB)


@pytest.mark.parametrize("peak_share", [0.0, 0.1])
@pytest.mark.parametrize(("strategy", "gpus"), [("none", 1), ("ddp", 4), ("fsdp1", 4), ("fsdp2", 4)])
def test_the_most_tokens_are_those_that_need_a_limit(strategy, gpus, peak_share):
    reserve = Reserve((0, 1e-4, 100), (1, 2, 11), (2, 3, 42), peak_share)
    figures = composed(strategy, accumulating=True, optimizer=OptimizerBytes(states=4200, step=GIB))
    on = np.full(50, gpus)
    limits = np.append(np.linspace(0.5, 4, 25), np.geomspace(4, 1e4, 25)) * GIB  # to beyond the grid's last activations
    (tokens,) = figures.most_tokens(on, limits[None], reserve)
    fits = figures.needed_bytes(on, np.zeros(50), reserve) <= limits
    assert 0 < fits.sum() < 50 and (tokens[~fits] == 0).all()
    assert figures.needed_bytes(on, tokens, reserve)[fits] == pytest.approx(limits[fits])


def test_any_number_of_tokens_fits_where_none_takes_memory():
    figures = composed("none", accumulating=True, moment=MIDDLE._replace(per_token=0))
    found = figures.most_tokens(np.array([1, 1]), np.array([[4.0, 1.0]]) * GIB, Reserve((0, 100), (3, 11), (2, 42)))
    assert found.tolist() == [[np.inf, 0]]


def test_a_share_of_the_peak_stays_free_on_top_and_counts_as_reserve():
    reserve, figures = Reserve((0, 100), (1, 11), (2, 42), peak_share=0.06), composed("fsdp2", accumulating=True)
    without = Reserve((0, 100), (1, 11), (2, 42))
    one, tokens = np.array([2]), np.array([1])
    needed = [figures.needed_bytes(one, tokens, of)[0] for of in (without, reserve)]
    assert needed[1] - needed[0] == pytest.approx(0.06 * peak(figures, 2, 1))
    parts = [figures.parts(2, 1, of) for of in (without, reserve)]
    assert sum(parts[1].values()) == pytest.approx(needed[1])
    assert {**parts[0], "reserve": 0} == {**parts[1], "reserve": 0}


def test_the_deciding_moment_has_the_largest_need_including_its_margin():
    reserve, figures = Reserve((0, 100), (1, 11), (2, 42)), composed("fsdp2", accumulating=False)
    gpus, tokens = np.array([2, 64]), np.array([GIB, 1])
    held_bytes, activations = figures.deciding_bytes(gpus, tokens, reserve).T
    needed = held_bytes + GIB * reserve.gib(activations / GIB, gpus)
    assert needed == pytest.approx(figures.needed_bytes(gpus, tokens, reserve))


@pytest.mark.parametrize("peak_share", [0.0, 0.1])
def test_needs_rise_with_tokens_and_fall_with_more_gpus(peak_share):
    reserve = Reserve((0, 100), (1, 11), (2, 42), peak_share)
    for strategy in ("fsdp1", "fsdp2"):
        figures = composed(strategy, accumulating=True)
        tokens = np.geomspace(1, 1e9, 50).round()
        by_tokens = figures.needed_bytes(np.full(50, 4), tokens, reserve)
        assert (np.diff(by_tokens) >= 0).all()
        gpus = np.arange(2, 66)
        assert (np.diff(figures.needed_bytes(gpus, np.full(64, MANY), reserve)) <= 0).all()


def test_only_moments_that_another_exceeds_in_every_term_are_dropped():
    more_tokens, more_bytes = MIDDLE._replace(constant=0), MIDDLE._replace(constant=1e6, per_token=1)
    dominated = MIDDLE._replace(per_token=29, constant=-1)
    moments = np.array([more_tokens, more_bytes, dominated], float)
    figures = sharded(moments, UnshardedJob(UNITS, BF16, False, None, ADAMW), "none")
    assert peak(figures, 1, 1) > 1e6 and peak(figures, 1, 1_000_000) == 2100 + 4200 + 30 * 1_000_000 + 1300
