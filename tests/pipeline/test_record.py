"""Recorded programs have the allocations of a real training loop, in order."""

from __future__ import annotations

from collections import Counter

import pytest

for package in ("torch", "transformers", "peft", "bitsandbytes"):
    pytest.importorskip(package, reason="jobs are recorded with the extra [build], installed on Python 3.11")

from small_jobs import small_job
from torch.optim.optimizer import _foreach_supported_types

from autoconf.memory.optimizers import optimizer_bytes
from autoconf.memory.replay import Action, Program, replay
from autoconf.pipeline.replay.record import Batches, record
from autoconf.pipeline.tracing.first_rank import first_rank
from autoconf.pipeline.tracing.model_setup import trainable_shapes
from autoconf.pipeline.tracing.recorder import SAMPLES, TraceError
from autoconf.pipeline.validation import rank_trace

AT_ONCE = {"gradient_accumulation": False}
TOKENS = 509


def live_bytes(program: Program, where: str, when: str) -> int:
    """The peak in one step, without rounding, over allocations in parts whose names contain a word."""
    sizes: dict[int, int] = {}
    most = 0
    for event in program.events:
        if event.action == Action.FREE:
            del sizes[event.block]
        if event.action != Action.ALLOCATE:
            continue
        place = program.places[event.place]
        if place.op != "cuBLAS workspace":
            sizes[event.block] = event.nbytes
        if where in place.part and place.when == when:
            most = max(most, sum(sizes.values()))
    return most


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("full", {}),
        ("full", {"gradient_checkpointing": "reentrant", "mixed_precision": "bf16"}),
        ("lora", {"gradient_checkpointing": "none", "lora_dropout": 0.1, "adapter_dtype": "float32"}),
        ("qlora", {"quantization": "nf4", "mixed_precision": "bf16"}),
    ],
)
def test_a_micro_batch_peaks_where_the_trace_of_peaks_has_it(method: str, settings: dict) -> None:
    job = small_job(method, **settings, **AT_ONCE)
    traced = rank_trace.run(job, layers=None, tokens=TOKENS)
    program = record(job, Batches(SAMPLES, TOKENS), updates=1)
    # Labels, and the mask, are there to the end of an update; a trace of a peak lets labels go before the backward.
    batch = 2 * 8 * SAMPLES * TOKENS
    # A trace has no tables of bitsandbytes' codes: 16 and 256 numbers of float32, and an offset, for each 4-bit weight.
    codes = 4 * (16 + 256 + 1) * 2 * 7 if method == "qlora" else 0
    found = max(live_bytes(program, part, "step 1") for part in ("embedding", "layer", "head", "tail"))
    assert traced.peak_bytes + codes <= found <= traced.peak_bytes + batch + codes


@pytest.mark.parametrize(("optim", "per_parameter"), [("adamw_torch", 10), ("adamw_torch_fused", 8), ("sgd", 4)])
def test_an_optimizer_step_holds_states_and_temporaries(optim: str, per_parameter: int) -> None:
    """Bytes of a bfloat16 parameter: itself, its gradient, two states, and a temporary where foreach makes one."""
    job = small_job("full", optim=optim, vocabulary=4096, **AT_ONCE)
    program = record(job, Batches(1, 8), updates=2)
    parameters = sum(shape.elements for shape in trainable_shapes(job))
    found = live_bytes(program, "optimizer", "step 2") or live_bytes(program, "clipping", "step 2")
    assert found == pytest.approx(per_parameter * parameters, rel=0.01)


def test_the_first_step_makes_the_states_and_later_steps_repeat() -> None:
    program = record(small_job("full", **AT_ONCE), Batches(2, TOKENS), updates=3)
    made = {
        when: Counter(e.nbytes for e in program.events if e.nbytes and program.places[e.place].when == when)
        for when in ("loading", "step 1", "step 2", "step 3")
    }
    assert made["step 2"] == made["step 3"]
    more = made["step 1"] - made["step 2"]  # and cuBLAS' workspaces
    assert sum(size * n for size, n in more.items()) >= 2 * sum(size * n for size, n in made["loading"].items())


def test_every_block_is_freed_at_most_once_and_after_it_was_made() -> None:
    program = record(small_job("lora", **AT_ONCE), Batches(2, TOKENS, accumulation=2), updates=2)
    live: set[int] = set()
    for event in program.events:
        if event.action == Action.ALLOCATE:
            assert event.nbytes > 0 and event.block not in live
            live.add(event.block)
        elif event.action == Action.FREE:
            live.remove(event.block)
    assert replay(program).failed_at is None


def test_all_micro_batches_of_an_update_are_there_at_its_start() -> None:
    few, many = (record(small_job("full"), Batches(2, TOKENS, accumulation=n), updates=1) for n in (2, 5))
    more = live_bytes(many, "embedding", "step 1") - live_bytes(few, "embedding", "step 1")
    assert more == 3 * 3 * 8 * 2 * TOKENS  # ids, labels and mask of int64


def test_places_name_the_module_and_the_op() -> None:
    program = record(small_job("full", **AT_ONCE), Batches(2, TOKENS), updates=1)
    names = [str(place) for place in program.places]
    assert "step 1, layer 1, model.layers.1.mlp.up_proj, aten.mm.default" in names
    assert "step 1, optimizer, aten.zeros_like.default" in names
    assert any("layer 0 backward" in name and "model.layers.0.mlp" in name for name in names)  # recomputed


def test_fsdp2_gathers_and_reduces_on_streams_of_its_own() -> None:
    job = small_job("full", gpus=2, sharding="fsdp2", **AT_ONCE)
    program = record(job, Batches(2, TOKENS), updates=2)
    parts: dict[int, set[str]] = {}
    for event in program.events:
        if event.action == Action.ALLOCATE:
            place = program.places[event.place]
            parts.setdefault(event.stream, set()).add(place.part)
    compute, gather, reduce = sorted(parts, key=lambda stream: -len(parts[stream]))
    assert compute == 0
    if not any("backward" in part for part in parts[reduce]):
        gather, reduce = reduce, gather
    # torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py: the copy into the gather's buffer has its own stream
    # (get_all_gather_streams), and so have what is reduced and the sharded gradients (foreach_reduce).
    assert {"embedding", "layer 0"} <= parts[gather]
    assert parts[reduce] and all("backward" in part for part in parts[reduce])


def test_fsdp1_tells_the_allocator_which_streams_use_a_block() -> None:
    job = small_job("full", gpus=2, layers=4, sharding="fsdp1", **AT_ONCE)
    program = record(job, Batches(2, TOKENS), updates=2)
    actions = Counter(event.action for event in program.events)
    assert actions[Action.RECORD_STREAM] and actions[Action.MARK] and actions[Action.WAIT]
    made = {event.block: event.stream for event in program.events if event.action == Action.ALLOCATE}
    used = {(made[e.block], e.stream) for e in program.events if e.action == Action.RECORD_STREAM}
    # _flat_param.py, _free_unsharded_flat_param: gathered on a stream of its own, used by the default one; and
    # _runtime_utils.py, _reduce_grad: gradients of the default stream are used by the one that reduces.
    assert any(own and not other for own, other in used) and any(not own and other for own, other in used)
    # The limiter of all-gathers waits for events that were recorded before.
    marks: set[int] = set()
    for event in program.events:
        if event.action == Action.MARK:
            marks.add(event.block)
        assert event.action != Action.WAIT or event.block in marks
    assert replay(program).failed_at is None


@pytest.mark.parametrize("sharding", ["fsdp1", "fsdp2"])
def test_a_shard_peaks_where_the_trace_of_peaks_has_it(sharding: str) -> None:
    """A second micro-batch, without states: SGD has none."""
    job = small_job("full", gpus=2, layers=4, sharding=sharding, optim="sgd", **AT_ONCE)
    traced = rank_trace.run(job, layers=None, tokens=TOKENS)
    program = record(job, Batches(SAMPLES, TOKENS), updates=2)
    found = max(live_bytes(program, part, "step 2") for part in ("embedding", "layer", "head", "tail"))
    assert traced.peak_bytes <= found <= traced.peak_bytes + 2 * 8 * SAMPLES * TOKENS


def test_fsdp2_steps_over_all_shards_at_once() -> None:
    """PyTorch's foreach optimizers treat distributed tensors like plain ones."""
    job = small_job("full", gpus=2, sharding="fsdp2", vocabulary=4096, **AT_ONCE)
    with first_rank(job) as rank:
        assert {type(parameter) for parameter in rank.trainable} <= set(_foreach_supported_types)
    program = record(job, Batches(1, 8), updates=2)
    parameters = sum(shape.elements for shape in trainable_shapes(job)) / 2
    assert live_bytes(program, "optimizer", "step 2") == pytest.approx(10 * parameters, rel=0.03)


def test_bitsandbytes_does_not_step_over_distributed_tensors() -> None:
    job = small_job("full", gpus=2, sharding="fsdp2", optim="paged_adamw_8bit")
    with pytest.raises(TraceError, match="optim 'paged_adamw_8bit' and sharding 'fsdp2' cannot be replayed"):
        record(job, Batches(1, 8))


def made_in(program: Program, when: str, part: str = "") -> Counter[int]:
    """How many blocks of each size are allocated in a part of a step."""
    places = program.places
    return Counter(
        event.nbytes
        for event in program.events
        if event.nbytes and places[event.place].when == when and part in places[event.place].part
    )


def test_ddp_broadcasts_the_weights_and_makes_its_buckets_anew_at_the_second_update() -> None:
    """One bucket for all gradients at first; then those of 1 MiB and of 25 MiB, in the order of the gradients."""
    job = small_job("full", gpus=2, layers=60, vocabulary=8192, sharding="ddp", **AT_ONCE)
    program = record(job, Batches(1, 8), updates=2)
    gradients = sum(shape.elements * shape.itemsize for shape in trainable_shapes(job))
    assert 25 * 2**20 < gradients < 2 * 25 * 2**20
    loaded = made_in(program, "loading", "DDP")
    assert loaded[gradients] == 2  # the buffer of the broadcast, and the bucket
    buckets = [size for size in made_in(program, "step 2", "embedding") if size > 2**20]
    # The head's gradient comes first, and fills a bucket of 1 MiB; the next parameters fill one of 25 MiB.
    head = 2 * 8192 * 128
    assert head in buckets and sum(buckets) == gradients
    assert sorted(buckets)[-1] - 25 * 2**20 in range(head)


def test_ddp_looks_for_unused_parameters_without_checkpoints_and_keeps_its_buckets() -> None:
    job = small_job(
        "full", gpus=2, layers=60, vocabulary=8192, sharding="ddp", gradient_checkpointing="none", **AT_ONCE
    )
    program = record(job, Batches(1, 8), updates=2)
    gradients = sum(shape.elements * shape.itemsize for shape in trainable_shapes(job))
    loaded = made_in(program, "loading", "DDP")
    assert loaded[gradients] == 1  # the buffer of the broadcast
    assert sum(size * n for size, n in loaded.items()) == pytest.approx(2 * gradients, rel=1e-3)
    assert not [size for size in made_in(program, "step 2", "embedding") if size > 2**20]


@pytest.mark.parametrize("accumulation", [1, 3])
def test_ddp_trains_like_one_gpu_with_another_copy_of_the_gradients(accumulation: int) -> None:
    job, alone = (small_job("full", gpus=gpus, vocabulary=4096, sharding="ddp") for gpus in (2, 1))
    peaks = [live_bytes(record(j, Batches(2, 8, accumulation), updates=2), "optimizer", "step 2") for j in (job, alone)]
    assert peaks[0] - peaks[1] == sum(shape.elements * shape.itemsize for shape in trainable_shapes(job))


@pytest.mark.parametrize("optim", ["adafactor", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "lion_8bit"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_other_optimizers_hold_the_states_that_are_known_of_them(method: str, optim: str) -> None:
    """Against ``memory.optimizers``, whose figures were read in the same libraries."""
    settings = {"vocabulary": 4096, "layers": 3, **AT_ONCE}
    job, plain = small_job(method, optim=optim, **settings), small_job(method, optim="sgd", **settings)
    shapes = trainable_shapes(job)
    after = [live_bytes(record(j, Batches(1, 8), updates=2), "embedding", "step 2") for j in (job, plain)]
    known = optimizer_bytes(optim, shapes)
    small = 16 * len(shapes)  # Adafactor's mean square of each parameter, a number
    assert after[0] - after[1] == pytest.approx(known.states, rel=1e-3, abs=small)


def test_a_step_of_adafactor_has_the_temporaries_that_are_known_of_it() -> None:
    job = small_job("full", vocabulary=4096, optim="adafactor", **AT_ONCE)
    program = record(job, Batches(1, 8), updates=2)
    before = live_bytes(program, "clipping", "step 2")
    shapes = trainable_shapes(job)
    temporaries = live_bytes(program, "optimizer", "step 2") - before
    assert temporaries == pytest.approx(optimizer_bytes("adafactor", shapes).step, rel=0.02)


def test_paged_states_are_no_blocks_of_the_allocator() -> None:
    """The embedding has 32-bit states, and the MLP's matrices of 57,344 elements are too small to be paged."""
    job = small_job("full", vocabulary=4096, optim="paged_adamw_8bit", **AT_ONCE)
    made = made_in(record(job, Batches(1, 8), updates=1), "step 1", "optimizer")
    assert made[448 * 128] == 2 * 2 * 3  # two states of three matrices in two layers
    assert made[4096 * 128] == 0 and made[4 * 4096 * 128] == 0  # the head's, and the embedding's
