"""Memory of the host by hand; tests/pipeline/test_zero_truth.py has real processes."""

from __future__ import annotations

import pytest

from autoconf.jobs.stack import Stack, ZeroBuckets
from autoconf.memory.host_memory import pinned_bytes
from autoconf.memory.model import gpu_job
from autoconf.memory.store import ModelsTable
from autoconf.predictor.registry import MODELS

MODEL = "smollm2-135m"


@pytest.fixture(scope="module")
def table() -> ModelsTable:
    return ModelsTable.read(MODELS / "2.0.0")


def process_bytes(table: ModelsTable, gpus: int = 2, method: str = "full", **settings) -> float:
    return worker_bytes(table, gpus, 1, method, **settings)


def worker_bytes(table: ModelsTable, gpus: int, on_worker: int, method: str = "full", **settings) -> float:
    stack = Stack(**{"mixed_precision": "bf16", "gradient_accumulation": False, **settings})
    return gpu_job(table, MODEL, method, stack, several=gpus > 1).host_bytes(gpus, on_worker)


def trainable(table: ModelsTable) -> int:
    return table.trainable(MODEL, "full", "default").units.trainable


@pytest.mark.parametrize("sharding", ["ddp", "fsdp1", "fsdp2", "zero1", "zero2", "zero3"])
def test_without_offload_a_process_holds_nothing(table, sharding):
    assert process_bytes(table, sharding=sharding) == 0


def test_a_page_locked_block_is_a_power_of_two():
    assert [pinned_bytes(nbytes) for nbytes in (0, 1, 4096, 4097, 2**33 + 1)] == [0, 1, 4096, 8192, 2**34]


@pytest.mark.parametrize("sharding", ["zero1", "zero2", "zero3"])
def test_a_process_holds_its_partition_of_the_optimizer(table, sharding):
    """18 bytes for each parameter of the partition, of which page-locked blocks are up to twice as large."""
    partition = trainable(table) / 2
    found = process_bytes(table, sharding=sharding, offload="optimizer")
    assert 18 * partition < found < 30 * partition


def test_accumulation_keeps_whole_gradients_on_the_host_under_the_first_stages(table):
    for sharding, holds_more in (("zero1", True), ("zero2", True), ("zero3", False)):
        once, often = (
            process_bytes(table, sharding=sharding, offload="optimizer", gradient_accumulation=accumulates)
            for accumulates in (False, True)
        )
        assert (often > once) == holds_more
        assert often - once <= 4 * trainable(table)


def test_parameters_and_optimizer_add_up(table):
    each = [process_bytes(table, sharding="zero3", offload=name) for name in ("optimizer", "parameters")]
    assert process_bytes(table, sharding="zero3", offload="optimizer_and_parameters") == sum(each)
    assert 2 * trainable(table) / 2 <= each[1] <= 8 * trainable(table) / 2


def test_adapters_need_no_optimizer_for_the_base(table):
    full, lora = (process_bytes(table, method=m, sharding="zero3", offload="optimizer") for m in ("full", "lora"))
    assert lora < full / 50


def test_smaller_sub_groups_have_smaller_blocks(table):
    whole, parts = (
        process_bytes(table, sharding="zero3", offload="optimizer", zero_buckets=ZeroBuckets(sub_group_size=size))
        for size in (10**9, 2**20)
    )
    assert parts < whole


@pytest.mark.parametrize("sharding", ["fsdp1", "fsdp2"])
def test_fsdp_holds_shards_gradients_and_states_in_float32(table, sharding):
    shard = 4 * trainable(table) / 2
    found = process_bytes(table, sharding=sharding, offload="optimizer_and_parameters", optim="adamw_torch_fused")
    assert 4 * shard <= found <= 6 * shard
    assert process_bytes(table, sharding=sharding, offload="optimizer_and_parameters") >= found


def test_weights_that_are_converted_are_whole_on_the_host_of_each_process(table):
    for sharding, copies in (("ddp", 1), ("fsdp2", 1), ("zero2", 1), ("zero3", 0)):
        assert process_bytes(table, sharding=sharding, torch_dtype="float32") == copies * 4 * trainable(table)


def test_where_fsdp_takes_weights_from_decides_how_many_copies_a_worker_converts(table):
    for loading, copies in (("cpu", 8), ("rank0", 1), ("gpu", 0)):
        found = worker_bytes(table, 16, 8, sharding="fsdp2", torch_dtype="float32", loading=loading)
        assert found == copies * 4 * trainable(table)


def test_what_is_offloaded_adds_up_over_the_processes_of_a_worker(table):
    one, eight = (worker_bytes(table, 16, on, sharding="zero2", offload="optimizer") for on in (1, 8))
    assert eight == 8 * one


def test_more_gpus_hold_less_each(table):
    for sharding in ("zero1", "zero2", "zero3", "fsdp1", "fsdp2"):
        offload = "optimizer" if sharding.startswith("zero") else "optimizer_and_parameters"
        found = [process_bytes(table, gpus, sharding=sharding, offload=offload) for gpus in (2, 4, 8, 64)]
        assert found == sorted(found, reverse=True)
