"""FSDP's strategies: what they hold, compared with each other and with PyTorch's own wrappers."""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

import numpy as np
import pytest

from autoconf import Workload, recommend
from autoconf.jobs.stack import JobSharding, Stack, sharding_parts
from autoconf.memory.model import StackMemory
from autoconf.memory.needs import sharing
from autoconf.memory.objectives import with_gradient_of_forward
from autoconf.memory.profile import HeadWay, Point
from autoconf.memory.units import Unsupported
from autoconf.pipeline.catalog import architectures
from autoconf.pipeline.tracing.model_setup import TrainingSetup
from autoconf.pipeline.validation import fsdp_strategies
from autoconf.predictor import registry
from autoconf.predictor.predictor import Predictor

MODEL = "smollm2-360m"
TOKENS = np.array([512.0, 8192.0])
STRATEGIES = fsdp_strategies.SHARDINGS


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return registry.load("3.0.0")


def peaks(predictor: Predictor, sharding: str, gpus: int, method: str = "full", model: str = MODEL, **settings):
    memory: StackMemory = predictor.memory
    row = memory.row(model, method, Stack(sharding=sharding, **settings))
    many = np.full(len(TOKENS), row), np.full(len(TOKENS), gpus)
    return memory.peak_bytes(*many, TOKENS), memory.resident_bytes(*many)


@pytest.mark.parametrize("version", ["fsdp1", "fsdp2"])
@pytest.mark.parametrize("accumulating", [False, True])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_is_kept_whole_is_never_less_than_what_is_gathered_for_a_moment(predictor, version, accumulating, method):
    kept = "fsdp1_shard_grad_op" if version == "fsdp1" else "shard_grad_op"
    given = {"method": method, "model": "llama3.1-8b", "gradient_accumulation": accumulating}
    for gpus in (2, 8, 64):
        more, less = (peaks(predictor, name, gpus, **given) for name in (kept, version))
        assert (more[0] >= less[0]).all() and (more[1] == less[1]).all()


def test_ddp_holds_more_states_than_shard_grad_op_and_that_more_than_full_sharding(predictor):
    found = [peaks(predictor, sharding, 8, model="llama3.1-8b")[0] for sharding in ("ddp", "shard_grad_op", "fsdp2")]
    assert all((more > less).all() for more, less in pairwise(found))


@pytest.mark.parametrize(("hybrid", "full"), [
    ("hybrid_shard", "fsdp2"), ("fsdp1_hybrid_shard", "fsdp1"), ("hybrid_shard_zero2", "shard_grad_op"),
    ("fsdp1_hybrid_shard_zero2", "fsdp1_shard_grad_op"),
])  # fmt: skip
def test_on_one_node_hybrid_sharding_is_full_sharding_and_more_nodes_hold_as_much(predictor, hybrid, full):
    for gpus in (2, 8):
        assert np.array_equal(peaks(predictor, hybrid, gpus, gpus_per_node=8), peaks(predictor, full, gpus))
    on_one_node = peaks(predictor, full, 8)
    assert np.array_equal(peaks(predictor, hybrid, 64, gpus_per_node=8), on_one_node)
    assert np.array_equal(peaks(predictor, hybrid, 12, gpus_per_node=8), peaks(predictor, full, 6))


def test_gpus_of_a_node_share_alone():
    gpus = np.array([1, 4, 8, 12, 16])
    assert sharing(gpus, 0).tolist() == gpus.tolist()
    assert sharing(gpus, 8).tolist() == [1, 4, 8, 6, 8]
    assert sharing(gpus, np.array([0, 2, 8, 0, 4])).tolist() == [1, 2, 8, 12, 4]


def test_a_job_has_the_names_of_fsdps_strategies():
    assert set(STRATEGIES) == set(get_args(JobSharding)) - {"ddp", "fsdp1", "fsdp2", "zero1", "zero2", "zero3"}
    for name in STRATEGIES:
        stack = Stack(sharding=name)
        assert (stack.sharding, stack.fsdp_strategy) == sharding_parts(name)
    with pytest.raises(ValueError, match=r"fsdp_strategy 'shard_grad_op' and sharding 'ddp' exclude each other"):
        Stack(sharding="ddp", fsdp_strategy="shard_grad_op")


def test_answers_know_how_many_gpus_a_node_has():
    job = {"model_name": "qwen2.5-14b", "method": "full", "gpu_model": "NVIDIA-A100-SXM4-80GB", "batch_size": 64}
    job |= {"tokens_per_sample": 2048, "max_gpus": 64, "model_version": "3.0.0"}
    full = recommend(Workload(**job, sharding="fsdp2"))
    assert recommend(Workload(**job, sharding="hybrid_shard")).gpus == full.gpus > 2
    small_nodes = recommend(Workload(**job, sharding="hybrid_shard", gpus_per_worker=2))
    assert small_nodes.outcome == "fits_nowhere"  # two GPUs cannot share it
    assert any("was not replayed" in note for note in recommend(Workload(**job, sharding="hybrid_shard")).notes)


def test_objectives_that_run_several_forward_passes_are_refused(predictor):
    with pytest.raises(Unsupported, match=r"objective 'dpo' with fsdp_strategy 'shard_grad_op'"):
        predictor.row(MODEL, "full", Stack(sharding="shard_grad_op", objective="dpo"))
    predictor.row(MODEL, "full", Stack(sharding="hybrid_shard", objective="dpo"))


def test_earlier_versions_refuse_the_strategies_by_name():
    with pytest.raises(Unsupported) as refused:
        registry.load("2.0.0").row("llama-7b", "full", Stack(sharding="hybrid_shard"))
    assert "sharding 'hybrid_shard' is not in the domain of version 2.0.0" in refused.value.reason("2.0.0")


@pytest.mark.parametrize(("sharding", "accumulating"), [
    ("shard_grad_op", False), ("shard_grad_op", True), ("fsdp1_shard_grad_op", False),
    ("fsdp1_hybrid_shard_zero2", True),  # on one node as fsdp1_shard_grad_op
])  # fmt: skip
def test_composed_memory_is_that_of_pytorchs_wrappers(predictor, sharding, accumulating):
    stack = Stack(sharding=sharding, gradient_accumulation=accumulating, mixed_precision="bf16")
    job = TrainingSetup(architectures()[MODEL], "full", stack, gpus=8)
    (compared,) = fsdp_strategies.compare(predictor.memory.table, [job])
    assert all(abs(peak.difference_percent) < 0.5 for peak in compared)


@pytest.mark.parametrize(("model", "method", "settings"), [
    ("tinyllama-1.1b", "full", {"sharding": "fsdp1_shard_grad_op", "gradient_accumulation": False}),
    ("tinyllama-1.1b", "full", {"sharding": "shard_grad_op", "gradient_accumulation": True}),
    ("tinyllama-1.1b", "lora", {"sharding": "fsdp1_shard_grad_op", "mixed_precision": "bf16"}),
])  # fmt: skip
def test_a_loss_in_chunks_holds_what_it_holds_under_pytorchs_wrappers(predictor, model, method, settings):
    job = TrainingSetup(architectures()[model], method, Stack(loss="chunked", **settings), gpus=8)
    (compared,) = fsdp_strategies.compare(predictor.memory.table, [job])
    assert all(abs(peak.difference_percent) < 0.5 for peak in compared)


def test_a_gradient_of_the_forward_pass_counts_from_then_on(predictor):
    heads = predictor.memory.table.moments("tinyllama-1.1b", HeadWay(True, "bfloat16", "no", "chunked"))
    counted, head = with_gradient_of_forward(heads), 32_000 * 2_048 * 2
    before = np.isin(heads[:, 0], [Point.HEAD, Point.HEAD_OVER, Point.TURN])
    assert (counted[before, 1] - heads[before, 1] == head).all() and (counted[~before, 6] >= head).all()
    whole = predictor.memory.table.moments("tinyllama-1.1b", HeadWay(True, "bfloat16", "no", "full"))
    assert with_gradient_of_forward(whole) is whole  # its gradient is made in the backward pass
