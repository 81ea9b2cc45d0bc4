"""Conversion of layer and head settings to training setups and back."""

from __future__ import annotations

import numpy as np
import pytest

for package in ("torch", "transformers", "peft", "bitsandbytes"):
    pytest.importorskip(package, reason="versions are traced with the extra [build], installed on Python 3.11")

from autoconf.memory.model import head_way, layer_way
from autoconf.memory.profile import IN_ORDER, HeadWay, LayerWay
from autoconf.memory.store import ModelsTable
from autoconf.memory.ways import ORDERS
from autoconf.pipeline.catalog import NEWEST, architectures
from autoconf.pipeline.tracing.extrapolate import head_moments, layer_moments
from autoconf.pipeline.tracing.ledger import rank_for, trace
from autoconf.pipeline.tracing.scaling import sizes_of
from autoconf.pipeline.tracing.trace_model import derived_layers, head_job, layer_job, short_stack
from autoconf.pipeline.tracing.ways import head_ways, in_order_ways, layer_ways
from autoconf.predictor import registry
from autoconf.predictor.registry import MODELS

LLAMA = architectures()["llama-7b"]


def test_a_job_that_is_traced_for_a_way_is_looked_up_by_that_way():
    """Otherwise figures would be traced for one setting, and used for another."""
    for way in layer_ways():
        job = layer_job(LLAMA, way)
        assert layer_way(job.stack, job.method, several=False) == way
    for way in head_ways():
        job = head_job(LLAMA, way)
        assert head_way(job.stack, job.method, several=False) == way


def test_every_way_is_traced_once():
    for ways in (list(layer_ways()), list(head_ways())):
        assert len(ways) == len(set(ways))


def test_layers_before_the_first_adapter_are_traced_for_models_that_begin_with_mamba():
    assert not [*in_order_ways(("attention", "mamba", "attention"))]
    ways = [*in_order_ways(architectures()["granite-4.0-h-1b"].kinds)]
    assert len(ways) == len(set(ways)) == 44
    assert not {"full", "reentrant", "non-reentrant", "all-linear" + IN_ORDER} & {
        value for way in ways for value in way
    }


def test_a_version_that_counts_them_has_their_moments():
    table, counts = ModelsTable.read(MODELS / NEWEST), registry.card(NEWEST).rules >= ORDERS
    for name in table.models:
        if ways := [*in_order_ways(architectures()[name].kinds)]:
            assert (not table.figures(name).missing(ways)) == counts, name


@pytest.mark.parametrize("name", ["mistral-7b-v0.1", "granite-4.0-h-350m"])  # layers of one kind, and of two
def test_moments_of_a_trace_are_those_of_the_released_version(name):
    """Byte for byte, after rounding in the file: changes of the tracer must not change released figures."""
    architecture = architectures()[name]
    released = ModelsTable.read(MODELS / "2.0.0")
    short = short_stack(architecture)
    rank = rank_for(architecture, short)
    for way in (
        LayerWay("full", "bfloat16", "no", "bfloat16", False, "none", "default"),
        LayerWay("full", "float32", "bf16", "float32", False, "reentrant", "default"),
        LayerWay("lora", "float32", "bf16", "float32", True, "non-reentrant", "all-linear"),
        LayerWay("qlora", "bfloat16", "bf16", "float32", True, "none", "attention"),
        HeadWay(True, "bfloat16", "no", "full"),
        HeadWay(False, "float32", "bf16", "chunked"),
    ):
        if isinstance(way, LayerWay):
            storages = trace(layer_job(architecture, way), short, rank)
            moments = layer_moments(storages, short, architecture.kinds)
        else:
            moments = head_moments(trace(head_job(architecture, way), short, rank), short, rank)
        np.testing.assert_array_equal(np.array(moments, np.float32), released.moments(name, way))


@pytest.mark.parametrize("name", ["llama-13b", "yi-34b"])  # heads that share no keys and values, and that share them
def test_moments_derived_from_a_reference_are_those_of_the_released_version(name):
    architecture = architectures()[name]
    released = ModelsTable.read(MODELS / "2.0.0")
    for way in (
        LayerWay("full", "bfloat16", "no", "bfloat16", False, "none", "default"),
        LayerWay("full", "float32", "bf16", "float32", False, "reentrant", "default"),
        LayerWay("lora", "float32", "bf16", "float32", True, "non-reentrant", "all-linear"),
        LayerWay("qlora", "bfloat16", "bf16", "float32", True, "none", "attention"),
    ):
        derived = derived_layers(architecture, way)
        np.testing.assert_array_equal(np.array(derived, np.float32), released.moments(name, way))


def test_only_models_of_known_layers_whose_sizes_are_whole_blocks_are_derived():
    assert sizes_of(architectures()["llama-7b"])["groups"] == 1
    for name in ("mixtral-8x7b-instruct-v0.1", "granite-4.0-h-350m", "granite-20b-v2", "qwen3-8b"):
        assert sizes_of(architectures()[name]) is None
    odd = {**LLAMA.config, "intermediate_size": 11_009}
    assert sizes_of(LLAMA.model_copy(update={"config": odd})) is None
