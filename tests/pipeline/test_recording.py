"""A recording of a short model at two sizes is the program of the full model at any size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest

pytest.importorskip("torch", reason="jobs are recorded with the extra [build], installed on Python 3.11")

from autoconf.jobs.stack import Optim, Stack
from autoconf.memory.allocator_sizes import MIN_BLOCK
from autoconf.memory.replay import Action, Event, Program
from autoconf.pipeline.catalog import architectures
from autoconf.pipeline.replay import compiled
from autoconf.pipeline.replay.event_arrays import EventArrays, as_arrays
from autoconf.pipeline.replay.extend import extend
from autoconf.pipeline.replay.record import Batches, record
from autoconf.pipeline.replay.recording import canonical, recorded_at, recording
from autoconf.pipeline.tracing.model_setup import Method, TrainingSetup
from autoconf.pipeline.tracing.recorder import TraceError


def setup(method: Method, gpus: int, layers: int, **settings: Any) -> TrainingSetup:
    """A job on a small model of some depth."""
    architecture = architectures()["smollm2-135m"]
    architecture = architecture.model_copy(update={"config": {**architecture.config, "num_hidden_layers": layers}})
    return TrainingSetup(architecture, method, Stack(gradient_accumulation=False, **settings), gpus)


def blocks_in_order(events: EventArrays) -> list[int]:
    """Blocks and marks, numbered in their order of appearance."""
    numbers: dict[tuple[bool, int], int] = {}
    keys = zip(np.isin(events.actions, (Action.MARK, Action.WAIT)).tolist(), events.blocks.tolist(), strict=True)
    return [numbers.setdefault(key, len(numbers)) for key in keys]


@pytest.mark.parametrize(
    ("method", "gpus", "settings"),
    [
        ("full", 1, {}),
        ("lora", 1, {"adapter_dtype": "float32", "gradient_checkpointing": "reentrant"}),
        ("full", 2, {"sharding": "fsdp2"}),
        ("full", 2, {"sharding": "ddp"}),  # whose buckets do not end with a layer
    ],
)
def test_it_is_the_program_of_the_full_model_at_another_size(
    method: Method, gpus: int, settings: dict[str, Any]
) -> None:
    job = setup(method, gpus, 8, **settings)
    gpus *= 2 if gpus > 1 else 1
    direct = as_arrays(canonical(record(replace(job, gpus=gpus), Batches(2, 1000))).events)
    found = recording(job).events(2000, gpus)
    assert np.array_equal(found.actions, direct.actions) and np.array_equal(found.streams, direct.streams)
    # A list of norms has an entry for each parameter, which is less than the smallest block.
    assert np.array_equal(found.nbytes.clip(MIN_BLOCK), direct.nbytes.clip(MIN_BLOCK))
    assert blocks_in_order(found) == blocks_in_order(direct)


@pytest.mark.parametrize(
    ("method", "optim"),
    [*(("full", name) for name in get_args(Optim) if name != "adamw_torch"), ("lora", "adafactor"), ("lora", "sgd")],
)
def test_every_optimizer_has_its_states_at_full_depth(method: Method, optim: str) -> None:
    job = setup(method, 1, 9, optim=optim)
    direct = as_arrays(canonical(record(job, Batches(2, 1000))).events)
    found = recording(job).events(2000)
    assert np.array_equal(found.actions, direct.actions)
    assert np.array_equal(found.nbytes.clip(MIN_BLOCK), direct.nbytes.clip(MIN_BLOCK))
    assert blocks_in_order(found) == blocks_in_order(direct)


def test_the_first_allocation_of_a_quantized_model_is_as_large_as_the_full_model() -> None:
    job = setup("qlora", 1, 12, quantization="nf4", adapter_dtype="float32")
    direct = as_arrays(canonical(record(job, Batches(2, 1000))).events)
    found = recording(job).events(2000)
    assert np.array_equal(found.actions, direct.actions) and blocks_in_order(found) == blocks_in_order(direct)
    (differs,) = np.flatnonzero(found.nbytes.clip(MIN_BLOCK) != direct.nbytes.clip(MIN_BLOCK))
    assert differs == 0  # transformers' caching_allocator_warmup, which counts buffers, too
    assert found.nbytes[0] == pytest.approx(direct.nbytes[0], rel=0.01)


def test_under_fsdp1_it_ends_as_the_program_of_the_full_model() -> None:
    # Only what FSDP1 allocates and frees at once for each unit, at the first forward pass, is not repeated.
    job = setup("full", 2, 12, sharding="fsdp1", mixed_precision="bf16")
    direct = as_arrays(canonical(record(job, Batches(2, 1000))).events)
    found = recording(job).events(2000, 2)
    assert 0 < len(direct.actions) - len(found.actions) < 20
    whole = compiled.replay(direct)
    for capacity in (None, whole.allocated, int(1.05 * whole.allocated), int(1.1 * whole.allocated)):
        outcomes = [compiled.replay(events, capacity) for events in (found, direct)]
        assert outcomes[0][:2] == outcomes[1][:2]
        assert (outcomes[0].failed_at < 0) == (outcomes[1].failed_at < 0)


def test_a_loss_over_chunks_has_an_order_of_its_own_for_each_size() -> None:
    with pytest.raises(TraceError, match="depends on the size of the job"):
        recording(setup("full", 1, 8, loss="chunked_nll"))


def test_a_program_of_unequal_layers_is_not_extended() -> None:
    program = canonical(record(setup("full", 1, 6), Batches(2, 512)))
    grown = max(
        index
        for index, event in enumerate(program.events)
        if event.action == Action.ALLOCATE and program.places[event.place].part == "layer 2"
    )
    events = list(program.events)
    events[grown] = Event(*events[grown][:2], 3 * events[grown].nbytes, *events[grown][3:])
    with pytest.raises(TraceError, match="do not allocate in the same way"):
        extend(Program(events, program.places), 6, 8)


def test_a_loss_over_chunks_is_recorded_for_one_size() -> None:
    job = setup("lora", 1, 8, loss="chunked_nll")
    with pytest.raises(TraceError, match="depends on the size"):
        recording(job)
    direct = as_arrays(canonical(record(job, Batches(2, 1000))).events)
    found = recorded_at(job, 2000)
    assert np.array_equal(found.actions, direct.actions) and blocks_in_order(found) == blocks_in_order(direct)
    assert np.array_equal(found.nbytes.clip(MIN_BLOCK), direct.nbytes.clip(MIN_BLOCK))
