"""Memory composed from the ledger of one GPU and FSDP's schedule, compared with ranks under PyTorch's wrappers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

for package in ("torch", "transformers", "peft", "bitsandbytes"):
    pytest.importorskip(package, reason="versions are traced with the extra [build], installed on Python 3.11")

from on_demand import OnDemand
from small_jobs import small_job

from autoconf.jobs.stack import Stack
from autoconf.memory import model as memory_model
from autoconf.memory.profile import IN_ORDER, optimizer_shapes
from autoconf.memory.units import Unsupported
from autoconf.memory.ways import ORDERS, layer_way
from autoconf.pipeline.catalog import architectures
from autoconf.pipeline.tracing import (
    model_setup,
    trace_model,
)
from autoconf.pipeline.tracing.model_setup import TrainingSetup
from autoconf.pipeline.tracing.recorder import TraceError
from autoconf.pipeline.validation import composition, rank_trace

LAYERS = 7
AT_ONCE = {"gradient_accumulation": False}
FLOAT32 = {"adapter_dtype": "float32"}


@pytest.fixture(scope="module")
def table() -> OnDemand:
    return OnDemand(small_job("full", layers=LAYERS, vocabulary=8192).architecture)


PREPARED = {"quantization": "nf4", "mixed_precision": "bf16"}
EXACT = 0.002  # for such a small model; for the full model all differences are smaller
STACKS = [
    # Without checkpointing, the moments with checkpointing are included as well.
    ("full", 1, {"gradient_checkpointing": "none", "loss": "chunked", **AT_ONCE}, 0.01),
    ("lora", 1, {"lora_targets": "all-linear", "lora_dropout": 0.1, **FLOAT32}, EXACT),
    ("full", 2, {"sharding": "ddp", "torch_dtype": "float32", "mixed_precision": "bf16"}, EXACT),
    ("full", 2, {"sharding": "fsdp2", **AT_ONCE}, EXACT),
    ("full", 2, {"sharding": "fsdp2", "mixed_precision": "bf16", "gradient_checkpointing": "reentrant"}, EXACT),
    ("full", 2, {"sharding": "fsdp1"}, EXACT),
    # Adapters are separate units of FSDP1, and gathering them is not counted.
    ("lora", 2, {"sharding": "fsdp1", "gradient_checkpointing": "reentrant", **AT_ONCE}, 0.04),
    ("qlora", 2, {"sharding": "fsdp2", "quantization": "nf4", "mixed_precision": "bf16", **FLOAT32}, EXACT),
    ("qlora", 1, {**PREPARED, "upcast_unquantized": "all", **FLOAT32}, EXACT),
    ("qlora", 1, {**PREPARED, "upcast_unquantized": "all", "lora_dropout": 0.1, "loss": "chunked"}, EXACT),
    # The first layer's input and the final norm are counted in float32.
    ("qlora", 1, {**PREPARED, "upcast_unquantized": "norms", "gradient_checkpointing": "reentrant", **FLOAT32}, 0.01),
    ("qlora", 2, {**PREPARED, "upcast_unquantized": "all", "sharding": "ddp", **FLOAT32}, EXACT),
    ("qlora", 2, {**PREPARED, "upcast_unquantized": "all", "sharding": "fsdp2", **FLOAT32}, EXACT),  # as loaded
]


@pytest.mark.parametrize(("method", "gpus", "settings", "allowed"), STACKS)
def test_composed_figures_are_those_of_whole_traces(table, method, gpus, settings, allowed):
    job = small_job(method, gpus, layers=LAYERS, vocabulary=8192, **settings)
    whole = rank_trace.figures(job)
    for count in (1,) if gpus == 1 else (2, 8):
        for tokens in (128, 4096, 262_144):
            composed = table.peak_bytes(replace(job, gpus=count), tokens)
            assert composed == pytest.approx(whole.peak_bytes(tokens, count), rel=allowed), (count, tokens)


@pytest.mark.parametrize("settings", [{}, {"lora_targets": "all-linear"}, {"lora_dropout": 0.1}])
def test_adapters_that_fsdp1_wraps_one_by_one_keep_an_input_each_under_mixed_precision(table, settings):
    """They are in float32 when PEFT casts their input, so queries and values do not share a copy of it."""
    settings = {"sharding": "fsdp1", "mixed_precision": "bf16", "gradient_checkpointing": "none", **settings}
    job = small_job("lora", 2, layers=LAYERS, vocabulary=8192, **settings)
    whole = rank_trace.figures(job)
    for tokens in (4096, 262_144):
        expected, one, two = whole.peak_bytes(tokens, 2), np.array([tokens]), np.array([2])
        assert table.peak_bytes(job, tokens) == pytest.approx(expected, rel=0.005)
        before = memory_model.gpu_memory(table, "", "lora", job.stack, several=True, rules=0)
        shared = "lora_dropout" not in settings  # dropout makes an input for each adapter anyway
        assert (before.peak_bytes(two, one)[0] < 0.99 * expected) == shared


@pytest.mark.parametrize("rank", [3, 64])
def test_one_trace_predicts_every_rank_of_adapters(table, rank):
    job = small_job("lora", layers=LAYERS, vocabulary=8192, lora_r=rank, lora_dropout=0.1, **FLOAT32)
    for tokens in (256, 65_536):
        whole = rank_trace.figures(job).peak_bytes(tokens, 1)
        assert table.peak_bytes(job, tokens) == pytest.approx(whole, rel=0.001)


@pytest.mark.parametrize("name", ["mixtral-8x7b-instruct-v0.1", "smollm2-135m"])
@pytest.mark.parametrize("rank", [1, 16])
def test_the_optimizer_has_adapters_of_every_rank_those_of_experts_too(name, rank):
    model = architectures()[name]
    architecture = model.model_copy(update={"config": model.shortened(["layer"] * 3)})
    trainable = trace_model.units(architecture, "lora", "all-linear")
    job = TrainingSetup(architecture, "lora", Stack(lora_targets="all-linear", lora_r=rank))
    shapes = optimizer_shapes(trainable, rank, 2, flat=False)
    found = [shape for shape, (_, count) in zip(shapes, trainable.shapes, strict=True) for _ in range(count)]
    assert sorted(shape.dimensions for shape in found) == sorted(
        s.dimensions for s in model_setup.trainable_shapes(job)
    )


def test_adapters_in_float32_hold_more_than_in_bfloat16(table):
    """Inputs of adapted layers are cast to the adapters' dtype, and kept."""
    small, large = (small_job("lora", layers=LAYERS, vocabulary=8192, adapter_dtype=d) for d in ("bfloat16", "float32"))
    stack = {"gradient_checkpointing": "none"}
    few, many = (
        table.peak_bytes(replace(job, stack=job.stack.model_copy(update=stack)), 65_536) for job in (small, large)
    )
    assert many > 1.03 * few


@pytest.mark.parametrize("method", ["full", "lora"])
def test_whole_models_of_several_kinds_of_layers_are_composed(method):
    architecture = architectures()["granite-4.0-h-350m"]
    kinds = ["mamba", "mamba", "attention", "mamba", "mamba", "mamba", "attention", "mamba"]
    short = architecture.model_copy(update={"config": architecture.shortened(kinds)})
    table, tokens = OnDemand(short), 1018
    for job in (
        TrainingSetup(short, method, Stack(**AT_ONCE)),
        TrainingSetup(short, method, Stack(sharding="fsdp1", **AT_ONCE), gpus=2),
    ):
        assert table.peak_bytes(job, tokens) == pytest.approx(
            composition.whole_run(job, tokens).peak_bytes(tokens, job.gpus), rel=0.01
        )


def test_layers_before_the_first_adapter_keep_nothing_unless_inputs_have_gradients():
    architecture = architectures()["granite-4.0-h-350m"]
    kinds = ["mamba"] * 3 + ["attention"] + ["mamba"] * 3 + ["attention", "mamba"]
    short = architecture.model_copy(update={"config": architecture.shortened(kinds)})
    table, tokens = OnDemand(short), 4078
    plain = {"lora_targets": "attention", "gradient_checkpointing": "none", "adapter_dtype": "float32", **AT_ONCE}
    for gpus in (1, 2):
        job = TrainingSetup(short, "lora", Stack(**plain), gpus)
        whole = composition.whole_run(job, tokens).peak_bytes(tokens, job.gpus)
        assert table.peak_bytes(job, tokens) == pytest.approx(whole, rel=0.005)
        before = memory_model.gpu_memory(table, "", "lora", job.stack, several=gpus > 1, rules=ORDERS - 1)
        assert before.peak_bytes(np.array([gpus]), np.array([tokens]))[0] > 1.03 * whole
    with pytest.raises(TraceError, match="mamba layers before the first adapter have a backward pass"):
        way = layer_way(Stack(**plain | {"gradient_checkpointing": "non-reentrant"}), "lora", several=False)
        trace_model.traced_layers(short, way._replace(lora_targets=way.lora_targets + IN_ORDER), table.rank)


def test_replicas_hold_one_more_set_of_gradients_on_any_number_of_gpus(table):
    tokens = 1 << 20
    alone = table.peak_bytes(small_job("full", layers=LAYERS, vocabulary=8192), tokens)
    replicas = [
        table.peak_bytes(small_job("full", gpus, layers=LAYERS, vocabulary=8192, sharding="ddp"), tokens)
        for gpus in (2, 8)
    ]
    parameters = table.trainable("", "full", "default").units.trainable
    assert replicas == [alone + 2 * parameters] * 2


def test_a_missing_profile_names_its_settings_and_the_reason(table, monkeypatch):
    stack = Stack(loss="chunked", lora_targets="attention", sharding="fsdp1")
    monkeypatch.setattr(table, "moments", lambda model, way: None)
    monkeypatch.setattr(table, "problem", lambda model, key: "TraceError: it cannot be")
    error = _unsupported(table, "lora", stack)
    assert "lora_targets 'attention'" in error.settings[0] and error.why == ": TraceError: it cannot be"


def test_a_sharding_that_adapters_do_not_run_under_is_unsupported(table, monkeypatch):
    problems = {("lora", "all-linear", "fsdp1"): "they do not run"}
    monkeypatch.setattr(table, "problem", lambda model, key: problems.get(tuple(key), ""))
    error = _unsupported(table, "lora", Stack(lora_targets="all-linear", sharding="fsdp1"))
    settings = f"sharding 'fsdp1' with lora_targets 'all-linear' of {table.architecture.name}"
    assert error.reason("9.9") == f"{settings} is not in the domain of version 9.9: they do not run"


def test_adafactor_does_not_step_over_fsdp2(table):
    error = _unsupported(table, "full", Stack(optim="adafactor", sharding="fsdp2"))
    assert error.settings == ("optim 'adafactor' with sharding 'fsdp2'",)


def _unsupported(table: OnDemand, method: str, stack: Stack) -> Unsupported:
    with pytest.raises(Unsupported) as caught:
        memory_model.gpu_memory(table, table.architecture.name, method, stack, several=True)
    return caught.value


@pytest.mark.parametrize("checkpointing", ["none", "non-reentrant"])
def test_dropout_before_adapters_in_bfloat16_is_counted_as_before_those_in_float32(table, checkpointing):
    job = small_job("lora", layers=LAYERS, vocabulary=8192, lora_dropout=0.1, gradient_checkpointing=checkpointing)
    for tokens in (4096, 262_144):
        whole = rank_trace.figures(job).peak_bytes(tokens, 1)
        assert whole <= table.peak_bytes(job, tokens) * 1.001
        assert table.peak_bytes(job, tokens) < 1.25 * whole
    without = replace(job, stack=job.stack.model_copy(update={"lora_dropout": 0.0}))
    assert table.peak_bytes(without, 262_144) <= table.peak_bytes(job, 262_144)
