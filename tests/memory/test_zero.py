"""Memory under DeepSpeed's ZeRO, compared with sums by hand; tests/pipeline/test_zero_truth.py has real processes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from autoconf.jobs.stack import Stack, ZeroBuckets
from autoconf.memory.model import gpu_memory
from autoconf.memory.optimizers import Shape
from autoconf.memory.profile import Point
from autoconf.memory.store import ModelsTable
from autoconf.memory.units import Unsupported
from autoconf.memory.zero_calls import Layer, ModelCalls, Module, micro_batch, model_calls
from autoconf.memory.zero_coordinator import Coordinator, gathered_parameters
from autoconf.memory.zero_job import ZERO
from autoconf.memory.zero_parameters import BucketSizes
from autoconf.memory.zero_reduction import arrivals
from autoconf.predictor.registry import MODELS

MODEL, TOKENS, GPUS = "smollm2-135m", 1024, np.array([2, 3, 8, 64, 512])


@pytest.fixture(scope="module")
def table() -> ModelsTable:
    return ModelsTable.read(MODELS / "2.0.0")


def peaks(table: ModelsTable, sharding: str, method: str = "full", tokens: int = TOKENS, **settings) -> np.ndarray:
    stack = Stack(sharding=sharding, **{"mixed_precision": "bf16", **settings})
    memory = gpu_memory(table, MODEL, method, stack, several=True)
    return memory.peak_bytes(GPUS, np.full(len(GPUS), tokens))


@pytest.mark.parametrize("sharding", ZERO)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_more_gpus_never_need_more(table, sharding, method):
    for accumulating in (False, True):
        found = peaks(table, sharding, method, gradient_accumulation=accumulating)
        assert (np.diff(found) <= 0).all()


def test_a_step_has_float32_parameters_states_gradients_and_temporaries(table):
    """Without activations worth mention the step decides: 2 + (2 + 4 + 8 + 4 + 4) / GPUs bytes under ZeRO-1 and 2."""
    trainable = table.trainable(MODEL, "full", "default").units.trainable
    for sharding in ("zero1", "zero2"):
        found = peaks(table, sharding, tokens=1, gradient_accumulation=False)[0]
        assert found == pytest.approx(trainable * (2 + 22 / 2), rel=0.03)
    assert peaks(table, "zero3", tokens=1)[0] == pytest.approx(trainable * 24 / 2, rel=0.03)


def test_an_optimizer_without_temporaries_needs_less(table):
    foreach, fused = (peaks(table, "zero2", tokens=1, optim=o)[0] for o in ("adamw_torch", "adamw_torch_fused"))
    assert fused < foreach


def test_higher_stages_hold_less_where_states_decide(table):
    one, two, three = (peaks(table, sharding, tokens=1) for sharding in ZERO)
    assert (two <= one).all()
    assert (three[1:] <= two[1:]).all()


@pytest.mark.parametrize("sharding", ZERO)
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("accumulating", [False, True])
def test_what_the_host_holds_is_not_on_the_gpu(table, sharding, method, accumulating):
    settings = {"gradient_accumulation": accumulating}
    on_gpu = peaks(table, sharding, method, **settings)
    optimizer = peaks(table, sharding, method, **settings, offload="optimizer")
    # ZeRO-1 and 2 offload through a buffer for the largest parameter, which many GPUs' small shards do not outweigh.
    compared = slice(None) if sharding == "zero3" else GPUS <= 8
    assert (np.diff(optimizer) <= 0).all() and (optimizer <= on_gpu)[compared].all()
    if sharding == "zero3":
        both = peaks(table, sharding, method, **settings, offload="optimizer_and_parameters")
        assert (both <= optimizer).all() and both[0] < optimizer[0]
        assert (peaks(table, sharding, method, **settings, offload="parameters") <= on_gpu).all()
    if method == "full":
        trainable = table.trainable(MODEL, "full", "default").units.trainable
        states = peaks(table, sharding, tokens=1, **settings) - peaks(
            table, sharding, tokens=1, **settings, offload="optimizer"
        )
        assert states[0] > 8 * trainable / GPUS[0]  # at least the states of AdamW in float32


def test_deepspeed_offloads_from_a_single_gpu(table):
    stack = Stack(sharding="zero2", mixed_precision="bf16", offload="optimizer", gradient_accumulation=False)
    memory = gpu_memory(table, MODEL, "full", stack, several=False)
    trainable = table.trainable(MODEL, "full", "default").units.trainable
    assert memory.resident.whole == pytest.approx(2 * trainable, rel=0.001) and memory.resident.sharded == 0


def test_larger_buckets_hold_more(table):
    for sharding in ZERO:
        small, large = (
            peaks(table, sharding, "lora", zero_buckets=ZeroBuckets(reduce_bucket_size=size)) for size in (10**5, 10**9)
        )
        assert (large > small).all()
    alone, overlapping = (
        peaks(table, "zero2", "lora", zero_buckets=ZeroBuckets(reduce_bucket_size=10**9, overlap_comm=overlap))
        for overlap in (False, True)
    )
    assert overlapping - alone == pytest.approx(2e9)


def test_zero3_gathers_as_many_parameters_as_may_live():
    layer = Layer((Module((100,)),) * 4, (Module((100,)),) * 4)
    model = ModelCalls((1000,), (layer,) * 50, (), (1000,))
    small, large = (
        gathered_parameters(
            model, BucketSizes(100, 200, 0, limit, limit, 10**9, False), "reentrant", accumulating=False
        )
        for limit in (3000, 10**6)
    )
    assert large[Point.TURN].whole == 42_000  # all of them
    most = max(found.whole for found in small.values())
    assert 3000 <= most <= 3000 + 1000 + 2 * 200  # a parameter too many, and a buffer of the prefetch


@pytest.mark.parametrize(("prefetched", "moving"), [(100, 8300), (200, 0)])
def test_parameters_that_are_prefetched_alone_are_on_their_way_alone(prefetched, moving):
    layer = Layer((Module((100,)),) * 4, (Module((100,)),) * 4)
    model, buckets = (
        ModelCalls((100,), (layer,) * 20, (), (100,)),
        BucketSizes(100, prefetched, 0, 10**6, 0, 10**9, False),
    )
    # Calls of modules without parameters prefetch as well, so more and more are on their way; two make a group.
    assert gathered_parameters(model, buckets, "none", accumulating=False)[Point.FORWARD].moving == moving


@pytest.mark.parametrize("sharding", ZERO)
def test_one_gpu_under_deepspeed_holds_float32_copies_and_no_less_than_each_of_two(table, sharding):
    stack = Stack(sharding=sharding, mixed_precision="bf16")
    alone = gpu_memory(table, MODEL, "full", stack, several=False).peak_bytes(np.array([1]), np.array([TOKENS]))[0]
    parameters = table.trainable(MODEL, "full", "default").units.trainable
    assert alone > (2 + 4 + 8) * parameters  # bfloat16, float32, two states
    assert alone >= peaks(table, sharding)[0]


def shapes_of(hidden: int, keys: int, inner: int, vocabulary: int, layers: int) -> tuple[tuple[Shape, int], ...]:
    """Those of a small Mistral, in the order in which it has them."""
    return (
        (Shape((vocabulary, hidden), 2, True), 1), (Shape((hidden, hidden), 2), 2 * layers),
        (Shape((keys, hidden), 2), 2 * layers), (Shape((inner, hidden), 2), 2 * layers),
        (Shape((hidden, inner), 2), layers), (Shape((hidden,), 2), 2 * layers + 1),
        (Shape((vocabulary, hidden), 2), 1),
    )  # fmt: skip


# (first and second matrix of the adapter of rank 1, how many there are in a layer)
ADAPTERS = (((1, 128), 6), ((128, 1), 3), ((64, 1), 2), ((448, 1), 2), ((1, 448), 1))
RECORDED = Path(__file__).parents[1] / "data" / "zero3_available.json"


@pytest.mark.parametrize("case", ["adapters", "full"])
def test_the_coordinator_has_as_many_parameters_at_each_call_as_that_of_real_processes(case):
    """The number was recorded before each call of a module in the last micro-batch of two jobs of zero_truth.csv."""
    if case == "adapters":
        adapters = tuple((Shape(dimensions, 2), 4 * count) for dimensions, count in ADAPTERS)
        model = model_calls(shapes_of(128, 64, 448, 1024, 4), 4, adapters, rank=4)
        buckets, checkpointing = BucketSizes(16384, 14745, 1280, 819200, 819200, 10**9, True), "reentrant"
    else:
        model = model_calls(shapes_of(192, 96, 672, 4096, 6), 6)
        buckets, checkpointing = BucketSizes(36864, 33177, 1920, 368640, 368640, 10**9, True), "non-reentrant"
    coordinator = Coordinator([*model.sizes()], micro_batch(model, checkpointing), buckets)
    for fresh in (True, False):
        available = [before for _, before, *_ in coordinator.calls(fresh=fresh)]
    assert available == json.loads(RECORDED.read_text())[case]


def test_a_bucket_is_copied_when_a_gradient_does_not_fit_unless_it_has_one():
    model = ModelCalls((90,), (Layer((Module((30,)), Module((20,))), (Module((40,)),)),), (), (60,))
    copied = {
        part: [arrival.copied for arrival in found] for part, found in arrivals(model, 100, adapters=False).items()
    }
    # 60 + 40 fit; 20 does not; 20 + 30 fit; 90 does not.
    assert copied == {"loss": [0], "last": [0, 100, 0], "middle": [], "first": [], "tail": [50]}
    assert [arrival.copied for arrival in arrivals(model, 70, adapters=False)["last"]] == [0, 0, 60]


def test_sub_groups_limit_what_zero3_steps_over_at_once(table):
    whole, parts = (
        peaks(table, "zero3", tokens=1, zero_buckets=ZeroBuckets(sub_group_size=size))[0] for size in (10**9, 10**6)
    )
    assert parts < whole


def test_bfloat16_without_mixed_precision_is_refused_with_the_way_out(table):
    with pytest.raises(Unsupported) as raised:
        peaks(table, "zero3", mixed_precision="no")
    assert "mixed_precision 'bf16'" in raised.value.why
