"""What a GPU holds while a job is loaded, recorded from the libraries' own code, against figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

for package in ("torch", "transformers", "peft", "bitsandbytes", "accelerate"):
    pytest.importorskip(package, reason="jobs are recorded with the extra [build], installed on Python 3.11")

from small_jobs import small_job

from autoconf.jobs.stack import Stack
from autoconf.memory.loading import loading_memory
from autoconf.memory.model import StackMemory
from autoconf.memory.replay import Action, Program
from autoconf.pipeline.catalog import architectures
from autoconf.pipeline.replay.judge import judge
from autoconf.pipeline.replay.loaded_model import loaded_model
from autoconf.pipeline.replay.record import Batches, record
from autoconf.pipeline.tracing.first_rank import first_rank
from autoconf.pipeline.tracing.model_setup import TrainingSetup
from autoconf.predictor import registry

# Parameters of the small model: a layer's projections (128 x 128, 64 x 128 twice, 128 x 128), MLP (448 x 128 thrice)
# and norms; embeddings and head.
LAYER = 2 * 128 * 128 + 2 * 64 * 128 + 3 * 448 * 128 + 2 * 128
EMBEDDING = 512 * 128


def job(method: str = "full", gpus: int = 1, **settings) -> TrainingSetup:
    return small_job(method, gpus=gpus, layers=4, vocabulary=512, gradient_accumulation=False, **settings)


def loaded(setup: TrainingSetup, loading: str = "cpu", updates: int = 0) -> Program:
    return record(setup, Batches(2, 64), updates=updates, loading=loading)


def held(program: Program) -> list[tuple[int, str]]:
    """Bytes held after each allocation while loading, with the place; without rounding."""
    sizes: dict[int, int] = {}
    found = []
    for event in program.events:
        if event.action == Action.FREE:
            del sizes[event.block]
        elif event.action == Action.ALLOCATE:
            place = program.places[event.place]
            if place.when != "loading":
                break
            sizes[event.block] = event.nbytes
            found.append((sum(sizes.values()), str(place)))
    return [*found, (sum(sizes.values()), "end")]


def peak(program: Program) -> int:
    return max(nbytes for nbytes, _ in held(program))


@pytest.mark.parametrize(
    "setup",
    [
        job(),
        job("lora", adapter_dtype="float32"),
        job("full", 2, sharding="ddp"),
        job("full", 4, sharding="fsdp1"),
        job("full", 4, sharding="fsdp2", mixed_precision="bf16"),
        job("lora", 4, sharding="fsdp1"),
        job("lora", 4, sharding="fsdp1", shard_adapters=False),
    ],
    ids=lambda setup: f"{setup.method}-{setup.gpus}-{setup.stack.sharding}",
)
@pytest.mark.parametrize("loading", ["cpu", "gpu", "rank0"])
def test_after_loading_a_gpu_holds_what_training_starts_with(setup: TrainingSetup, loading: str) -> None:
    with first_rank(setup) as rank:
        tensors = {}
        for tensor in rank.resident():
            storage = getattr(tensor, "_local_tensor", tensor).untyped_storage()
            tensors[storage._cdata] = storage.nbytes()
    assert held(loaded(setup, loading))[-1][0] == pytest.approx(sum(tensors.values()), rel=1e-3)


def test_fsdp1_moves_one_unit_at_a_time_and_makes_a_flat_copy_of_it() -> None:
    """The root unit comes last: its weights, their flat copy, and the shards of everything."""
    program = loaded(job("full", 4, sharding="fsdp1"))
    layers, root = 2 * 4 * LAYER, 2 * (2 * EMBEDDING + 128)
    last_layer = 3 * layers // 4 // 4 + 2 * (2 * LAYER) + 2 * LAYER // 4
    assert peak(program) == pytest.approx(max(last_layer, layers // 4 + 2 * root + root // 4), rel=1e-3)


def test_fsdp_of_a_model_on_the_gpu_holds_all_of_it_at_once() -> None:
    """FSDP1 makes a flat copy of the first layer, of which a shard is copied; FSDP2 makes shards of it."""
    weights = 2 * (4 * LAYER + 2 * EMBEDDING + 128)
    first_layer = {"fsdp1": 2 * LAYER + 2 * LAYER // 4, "fsdp2": 2 * LAYER // 4}
    for sharding, more in first_layer.items():
        assert peak(loaded(job("full", 4, sharding=sharding), "gpu")) == pytest.approx(weights + more, rel=1e-3)


def test_fsdp1_keeps_bfloat16_shards_until_the_first_forward_pass() -> None:
    """accelerate upcasts flat parameters, of which the model's parameters still are bfloat16 views."""
    program = loaded(job("full", 4, sharding="fsdp1", mixed_precision="bf16"), updates=1)
    shards = (4 * LAYER + 2 * EMBEDDING + 128) // 4
    assert held(program)[-1][0] == pytest.approx((2 + 4) * shards, rel=1e-3)
    sizes = {event.block: event.nbytes for event in program.events if event.action == Action.ALLOCATE}
    first_step = next(n for n, e in enumerate(program.events) if e.nbytes and program.place(n).when == "step 1")
    live_later = set(sizes) - {e.block for e in program.events if e.action == Action.FREE}
    freed = [e.block for e in program.events[first_step:] if e.action == Action.FREE]
    before = {e.block for e in program.events[:first_step] if e.action == Action.ALLOCATE}
    assert sum(sizes[block] for block in freed if block in before) == pytest.approx(2 * shards, rel=1e-3)
    assert sum(sizes[block] for block in live_later if block in before) == pytest.approx(4 * shards, rel=1e-3)


def test_fsdp2_receives_one_parameter_at_a_time_from_the_first_process() -> None:
    """A process holds the received parameter and the one before it: two of an MLP, with all shards but the last few."""
    program = loaded(job("full", 4, sharding="fsdp2"), "rank0")
    matrix, norms = 448 * 128, 2 * 128
    shards = (4 * LAYER + EMBEDDING - matrix - norms) // 4
    assert peak(program) == 2 * (shards + 2 * matrix)


def test_a_4_bit_weight_is_quantized_from_a_bfloat16_copy_on_the_gpu() -> None:
    setup = job("qlora", quantization="nf4")
    program = loaded(setup)
    in_4_bits, norms = 4 * (LAYER - 2 * 128), 9 * 128
    warm_up = 2 * (2 * EMBEDDING + norms) + in_4_bits // 2  # caching_allocator_warmup
    assert held(program)[0][0] == warm_up
    made = [(event.nbytes, program.place(n).op) for n, event in enumerate(program.events) if event.nbytes]
    copies = [nbytes for nbytes, op in made if op == "aten.empty.memory_format"]
    assert copies.count(2 * 448 * 128) == 4 * 3 and copies.count(2 * 128 * 128) == 4 * 2
    after = held(program)[-1][0]
    assert after < peak(program) < after + 2 * 448 * 128 + 5 * 4 * 448 * 128 // 64


def test_peft_upcasts_what_is_not_quantized_and_trl_casts_embeddings_back() -> None:
    setup = job("qlora", quantization="nf4", upcast_unquantized="norms", mixed_precision="bf16")
    program = loaded(setup)
    assert [event.action for event in program.events].count(Action.EMPTY_CACHE) == 1
    places = [place for _, place in held(program)]
    assert any("upcast by PEFT" in place and "lm_head" in place for place in places)
    assert any("cast by TRL" in place and "embed_tokens" in place for place in places)
    plain = loaded(job("qlora", quantization="nf4"))
    norms = 9 * 128 * 2
    assert held(program)[-1][0] == held(plain)[-1][0] + norms


def tied(method: str = "full", gpus: int = 1, **settings) -> TrainingSetup:
    """Two layers of a model whose head is its embedding."""
    return TrainingSetup(architectures()["smollm2-135m"], method, Stack(gradient_accumulation=False, **settings), gpus)


NF4 = {"quantization": "nf4"}
JOBS = [
    job(),
    job(torch_dtype="float32"),
    job("lora", adapter_dtype="float32"),
    job("qlora", **NF4),
    job("qlora", **NF4, upcast_unquantized="norms", mixed_precision="bf16"),
    tied("qlora", **NF4, upcast_unquantized="norms", mixed_precision="bf16"),
    tied("full", 4, sharding="ddp"),
    job("full", 2, sharding="ddp"),
    job("lora", 2, sharding="ddp"),
    *(job(method, 4, sharding=sharding) for method in ("full", "lora") for sharding in ("fsdp1", "fsdp2")),
    *(tied("full", gpus, sharding=sharding) for gpus in (2, 8) for sharding in ("fsdp1", "fsdp2")),
    *(tied("full", 4, sharding=sharding, mixed_precision="bf16") for sharding in ("fsdp1", "fsdp2")),
    *(job("lora", 4, sharding=sharding, mixed_precision="bf16") for sharding in ("fsdp1", "fsdp2")),
    job("full", 4, sharding="fsdp1", torch_dtype="float32", mixed_precision="bf16"),
    job("lora", 4, sharding="fsdp1", shard_adapters=False),
    *(job("qlora", 4, sharding=sharding, **NF4) for sharding in ("fsdp1", "fsdp2")),
    TrainingSetup(architectures()["olmoe-1b-7b"], "qlora", Stack(**NF4)),
    TrainingSetup(architectures()["olmoe-1b-7b"], "full", Stack(sharding="fsdp2"), 4),
]


@pytest.mark.parametrize("setup", JOBS, ids=lambda s: f"{s.architecture.name}-{s.method}-{s.gpus}-{s.stack.sharding}")
@pytest.mark.parametrize("loading", ["cpu", "gpu", "rank0"])
def test_the_closed_form_is_what_is_recorded(setup: TrainingSetup, loading: str) -> None:
    layers = None if "mistral" in setup.architecture.name else 2
    program = record(setup, Batches(2, 64), updates=0, layers=layers, loading=loading)
    warm_up = "caching_allocator_warmup"
    found = max(nbytes for nbytes, place in held(program) if warm_up not in place)
    strategy = setup.stack.sharding if setup.gpus > 1 else "none"
    memory = loading_memory(loaded_model(setup, layers), strategy, loading, shard_adapters=setup.stack.shard_adapters)
    expected = memory.peak_bytes(np.array([setup.gpus]))[0]
    assert found == pytest.approx(expected, rel=1e-3, abs=2048)  # bitsandbytes' table of 8-bit codes


@pytest.mark.parametrize("model", ["smollm2-135m", "llama3.1-8b", "granite-4.0-h-tiny"])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("sharding", ["fsdp1", "fsdp2"])
@pytest.mark.parametrize("loading", ["cpu", "gpu", "rank0"])
def test_what_answers_count_is_the_closed_form_of_all_parameters(
    model: str, method: str, sharding: str, loading: str
) -> None:
    """Answers know the sizes of units only, so all layers are equal there."""
    gpus = np.array([2, 4, 8, 64])
    quantized = NF4 if method == "qlora" else {}
    stack = Stack(sharding=sharding, mixed_precision="bf16", loading=loading, adapter_dtype="float32", **quantized)
    exact = loading_memory(loaded_model(TrainingSetup(architectures()[model], method, stack, 4)), sharding, loading)
    memory = registry.load("3.0.0").memory
    assert isinstance(memory, StackMemory)
    found = memory.loading_bytes(np.full(4, memory.row(model, method, stack)), gpus)
    assert found == pytest.approx(exact.peak_bytes(gpus), rel=0.02)


@pytest.mark.parametrize("model", ["smollm2-135m", "llama3.1-8b", "granite-4.0-h-tiny", "olmoe-1b-7b"])
@pytest.mark.parametrize("gpus", [1, 4])
@pytest.mark.parametrize("upcast", ["none", "norms", "all"])
def test_answers_count_it_without_fsdp_as_well(model: str, gpus: int, upcast: str) -> None:
    stack = Stack(sharding="ddp", mixed_precision="bf16", adapter_dtype="float32", upcast_unquantized=upcast, **NF4)
    exact = loading_memory(loaded_model(TrainingSetup(architectures()[model], "qlora", stack, gpus)), _strategy(gpus))
    assert _counted(model, "qlora", stack, gpus) == pytest.approx(exact.peak_bytes(np.array([gpus])), rel=0.02)


@pytest.mark.parametrize("model", ["smollm2-135m", "llama3.1-8b", "granite-4.0-h-tiny"])
def test_buffers_of_the_broadcast_are_those_of_all_parameters(model: str) -> None:
    stack = Stack(sharding="ddp", adapter_dtype="float32")
    exact = loading_memory(loaded_model(TrainingSetup(architectures()[model], "lora", stack, 4)), "ddp")
    assert _counted(model, "lora", stack, 4) == pytest.approx(exact.peak_bytes(np.array([4])), rel=0.005)


def _strategy(gpus: int) -> str:
    return "ddp" if gpus > 1 else "none"


def _counted(model: str, method: str, stack: Stack, gpus: int) -> np.ndarray:
    memory = registry.load("3.0.0").memory
    assert isinstance(memory, StackMemory)
    return memory.loading_bytes(np.array([memory.row(model, method, stack)]), np.array([gpus]))


def test_experts_are_merged_from_copies_on_the_gpu() -> None:
    """64 experts of gate and up projections, 1,024 x 2,048 each; their stacks are there when they are concatenated."""
    setup = TrainingSetup(architectures()["olmoe-1b-7b"], "full", Stack())
    program = record(setup, Batches(1, 8), updates=0, layers=1, loading="gpu")
    one, both = 2 * 1024 * 2048, 2 * 2 * 64 * 1024 * 2048
    sizes = [event.nbytes for event in program.events if event.nbytes]
    assert sizes.count(one) == 3 * 64  # down projections as well
    assert sizes.count(both // 2) == 3 and sizes.count(both) == 1


def llama_2_7b() -> TrainingSetup:
    stack = Stack(torch_dtype="float32", mixed_precision="bf16", sharding="fsdp1")
    return TrainingSetup(architectures()["llama-7b"], "full", stack, gpus=8)


def test_a_float32_model_that_is_whole_on_each_gpu_does_not_survive_loading() -> None:
    """Llama-2-7B has LLaMA-7B's sizes. An RTX 3090 has 23.6 GiB; FSDP1 over 8 of them."""
    whole = record(llama_2_7b(), Batches(1, 512), updates=0, loading="gpu")
    found, _ = judge(whole, usable_gib=23.6, overhead=1.5)
    assert not found.fits and found.failure.startswith("runs out of memory while loading: ")
    assert found.peak_loading_gib > 25.1  # 6.74 billion parameters of 4 bytes
    unit_by_unit = record(llama_2_7b(), Batches(1, 512), updates=0, loading="cpu")
    found, _ = judge(unit_by_unit, usable_gib=23.6, overhead=1.5)
    assert found.fits and found.failure == "" and found.peak_loading_gib < 6


@pytest.mark.slow
@pytest.mark.parametrize("loading", ["cpu", "rank0"])
def test_the_same_job_trains_if_its_weights_come_unit_by_unit(loading: str) -> None:
    found, _ = judge(record(llama_2_7b(), Batches(1, 512), loading=loading), usable_gib=23.6, overhead=1.5)
    assert found.fits and 15 < found.peak_memory_gib < 16
