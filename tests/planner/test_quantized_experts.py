"""Experts of a 4-bit base: quantized one by one with transformers 4, and left in 16 bits by transformers 5."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from autoconf import recommend
from autoconf.jobs.stack import Stack
from autoconf.memory.checks import LINEAR_EXPERTS
from autoconf.memory.model import gpu_memory
from autoconf.memory.units import GIB, Unsupported
from autoconf.pipeline.validation import quantized_experts
from autoconf.predictor import registry

MIXTRAL = "mixtral-8x7b-instruct-v0.1"
EXPERTS = 8 * 3 * 4096 * 14336 * 32  # of config.json


@pytest.fixture(scope="module")
def table():
    return registry.load("3.0.0").memory.table


def weights_gib(table, quantization: str) -> float:
    stack = Stack(quantization=quantization, lora_targets="attention", sharding="ddp", mixed_precision="bf16")
    memory = gpu_memory(table, MIXTRAL, "qlora", stack, several=False)
    return memory.parts(1, 512, registry.load("3.0.0").card.reserve)["weights"] / GIB


def test_quantized_experts_take_half_a_byte_and_their_constants(table):
    saved = (weights_gib(table, "nf4") - weights_gib(table, "nf4_experts")) * GIB
    constants = EXPERTS / 64 * (1 + 4 / 256)  # an absmax of 8 bits for 64 weights, and a float32 for 256 of these
    assert saved == pytest.approx(1.5 * EXPERTS - constants, rel=1e-3)


def test_composed_peaks_agree_with_the_published_table(table):
    published = pd.read_csv(quantized_experts.OUTPUT)
    assert set(published.model) == set(LINEAR_EXPERTS) == set(quantized_experts.MODELS)
    asked = iter(published.itertuples())
    for model, stack, gpus in quantized_experts.jobs():
        memory = gpu_memory(table, model, "qlora", stack, several=gpus > 1)
        for row in (next(asked) for _ in range(3)):
            assert row.model == model and row.gpus == gpus
            peak = memory.peak_bytes(np.array([gpus]), np.array([row.tokens]))[0] / GIB
            assert peak == pytest.approx(row.composed_gib, abs=0.002)
            assert -0.005 < peak / row.traced_gib - 1 < 0.1


@pytest.mark.parametrize(
    ("model", "settings", "said"),
    [
        ("qwen3-30b-a3b", {}, "compared for mixtral"),
        ("llama-7b", {}, "give quantization nf4"),
        (MIXTRAL, {"lora_targets": "all-linear"}, "lora_targets 'all-linear'"),
        (MIXTRAL, {"gradient_checkpointing": "none"}, "gradient_checkpointing 'none'"),
    ],
)
def test_what_was_not_compared_is_refused_by_name(table, model, settings, said):
    stack = Stack(**{"quantization": "nf4_experts", "sharding": "ddp", "mixed_precision": "bf16", **settings})
    with pytest.raises(Unsupported) as caught:
        gpu_memory(table, model, "qlora", stack, several=False)
    assert said in caught.value.reason("3.0.0")


def test_an_answer_says_that_experts_are_not_quantized():
    job = {"method": "qlora", "gpu_model": "NVIDIA-H200", "tokens_per_sample": 512, "batch_size": 1}
    models = [MIXTRAL, "qwen3-30b-a3b", "llama-7b"]
    notes = recommend(pd.DataFrame([{**job, "model_name": model} for model in models])).notes
    of_mixtral, of_qwen, of_llama = notes.astype(str)
    assert f"{2 * EXPERTS / GIB:.1f} GiB in 16 bits; with transformers 4 give quantization=nf4_experts" in of_mixtral
    assert "does not quantize experts" in of_qwen and "nf4_experts" not in of_qwen
    assert "experts" not in of_llama
    for change in ({"method": "lora"}, {"model_version": "2.0.0"}):
        answers = recommend(pd.DataFrame([{**job, "model_name": MIXTRAL, **change}]))
        assert "experts" not in str(answers.get("notes"))
