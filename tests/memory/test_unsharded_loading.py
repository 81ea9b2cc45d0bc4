"""What a GPU holds while a model is loaded that FSDP does not shard; ``pipeline/test_loading.py`` has recorded jobs."""

from __future__ import annotations

import numpy as np
import pytest

from autoconf import Workload, recommend
from autoconf.jobs.stack import Stack
from autoconf.memory.units import GIB
from autoconf.predictor import registry

# Llama-3.1-8B: embeddings and head of 128,256 x 4,096 each, 32 layers of 218,103,808 weights in matrices (the largest
# one has 14,336 x 4,096) and 8,192 in norms, and a final norm.
EMBEDDING, MATRICES, NORMS = 128256 * 4096, 32 * 218103808, 65 * 4096
LARGEST = 14336 * 4096
ALL = 2 * EMBEDDING + MATRICES + NORMS
PREPARED = {"mixed_precision": "bf16", "upcast_unquantized": "norms"}


def loading_gib(method: str, gpus: int, *, model: str = "llama3.1-8b", **settings) -> float:
    settings = {"sharding": "ddp", "quantization": "nf4" if method == "qlora" else "none"} | settings
    memory = registry.load("3.0.0").memory
    row = memory.row(model, method, Stack(**settings))
    return float(memory.loading_bytes(np.array([row]), np.array([gpus]))[0]) / GIB


def of_4_bit() -> float:
    """Weights of Llama-3.1-8B in 4 bits, and their absmax: a byte for 64 weights, and 4 for 256 of these."""
    absmax = MATRICES / 64 * (1 + 4 / 256)
    return MATRICES / 2 + 2 * (2 * EMBEDDING + NORMS) + absmax


@pytest.mark.parametrize("method", ["full", "lora"])
def test_training_on_one_gpu_holds_as_much_as_loading(method: str) -> None:
    assert loading_gib(method, 1) == 0


def test_a_weight_is_beside_its_4_bits_while_it_is_quantized() -> None:
    assert loading_gib("qlora", 1) == pytest.approx((of_4_bit() + 2.125 * LARGEST) / GIB, rel=1e-3)


def test_an_int8_weight_is_beside_the_loaded_one_and_a_float16_copy() -> None:
    weights = MATRICES + 2 * (2 * EMBEDDING + NORMS) + 4 * 32 * (4096 * 3 + 1024 * 2 + 14336 * 2)
    assert loading_gib("qlora", 1, quantization="int8") == pytest.approx((weights + 4 * LARGEST) / GIB, rel=1e-3)


def test_gptq_and_awq_are_not_quantized_on_the_gpu() -> None:
    memory = registry.load("3.0.0").memory
    for quantization in ("gptq", "awq"):
        row = memory.row("llama3.1-8b", "qlora", Stack(sharding="ddp", quantization=quantization))
        assert loading_gib("qlora", 1, quantization=quantization) * GIB <= memory.resident_bytes(
            np.array([row]), np.array([1])
        )


def test_peft_makes_embeddings_and_head_float32_and_trl_casts_them_back() -> None:
    expected = of_4_bit() + 2 * (2 * EMBEDDING + NORMS) + 2 * EMBEDDING
    for gpus, sharding in ((1, "ddp"), (4, "ddp"), (4, "zero2"), (4, "zero3")):
        assert loading_gib("qlora", gpus, sharding=sharding, **PREPARED) == pytest.approx(expected / GIB, rel=2e-3)


def test_ddp_broadcasts_the_head_in_a_buffer_that_other_parameters_began() -> None:
    """The last two buffers: 250 MiB and up to a matrix, then the rest of the layers and the head."""
    beside = loading_gib("lora", 4) * GIB - 2 * ALL
    assert 2 * EMBEDDING + 250 * 2**20 < beside < 2 * EMBEDDING + 2 * 250 * 2**20 + 2 * 2 * LARGEST


@pytest.mark.parametrize("sharding", ["zero1", "zero2"])
def test_zero_1_and_2_flatten_parameters_where_there_is_room(sharding: str) -> None:
    stack = {"sharding": sharding, "mixed_precision": "bf16"}
    assert loading_gib("full", 8, **stack) == loading_gib("full", 8, loading="gpu", **stack) == 0
    on_gpu = loading_gib("full", 8, loading="gpu", torch_dtype="float32", **stack)
    assert on_gpu == pytest.approx((4 * ALL + 2 * EMBEDDING) / GIB, rel=1e-3)


def test_zero_3_makes_a_module_at_a_time() -> None:
    stack = {"sharding": "zero3", "mixed_precision": "bf16"}
    for gpus in (2, 64):
        shards = 2 * ALL / gpus
        assert loading_gib("lora", gpus, **stack) == pytest.approx((2 * EMBEDDING + shards) / GIB, rel=1e-3)
        in_float32 = (2 + 4) * EMBEDDING + shards - 2 * EMBEDDING / gpus
        found = loading_gib("lora", gpus, torch_dtype="float32", **stack)
        assert found == pytest.approx(in_float32 / GIB, rel=1e-3)


def test_zero_3_shards_what_is_whole_on_each_gpu() -> None:
    stack = {"sharding": "zero3", "mixed_precision": "bf16"}
    assert loading_gib("full", 64, loading="gpu", **stack) == pytest.approx(2 * ALL / GIB, rel=1e-3)
    assert loading_gib("qlora", 64, **stack) == pytest.approx((of_4_bit() + 2.125 * LARGEST) / GIB, rel=2e-3)


def test_offloaded_shards_are_not_on_the_gpu_while_loading() -> None:
    stack = {"sharding": "zero3", "mixed_precision": "bf16", "offload": "optimizer_and_parameters"}
    assert loading_gib("lora", 2, **stack) == pytest.approx(2 * EMBEDDING / GIB, rel=1e-3)


def test_a_job_that_dies_while_it_is_loaded_says_so() -> None:
    """Under ZeRO-3 8 GPUs have room for 70 billion weights of 4 bits, but each of them has to hold all of these."""
    stack = {"stack": "reference", "quantization": "nf4", "mixed_precision": "bf16", "sharding": "zero3"}
    sizes = {"tokens_per_sample": 512, "batch_size": 8, "gpus_per_worker": 8, "max_gpus": 8}
    job = {"model_name": "llama3.1-70b", "method": "qlora", "gpu_model": "NVIDIA-GeForce-RTX-3090", **sizes, **stack}
    found = recommend(Workload(**job), model_version="3.0.0")
    assert not found.can_recommend
    assert "runs out of memory while loading: each GPU holds all weights" in found.reason
    larger = recommend(Workload(**{**job, "gpu_model": "L40S"}), model_version="3.0.0")
    assert larger.can_recommend
