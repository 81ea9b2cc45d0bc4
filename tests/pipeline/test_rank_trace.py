"""Traces of one rank of a job are affine and hold the memory of each sharding strategy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

for package in ("torch", "transformers", "peft", "bitsandbytes"):
    pytest.importorskip(package, reason="versions are traced with the extra [build], installed on Python 3.11")

import torch
from recording import peak, recorded
from small_jobs import small_job
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from autoconf.jobs.stack import Stack
from autoconf.memory.optimizers import optimizer_bytes
from autoconf.memory.version_1 import FIGURES, MemoryTable, read_figures
from autoconf.pipeline.catalog import architectures
from autoconf.pipeline.tracing import model_setup
from autoconf.pipeline.tracing.first_rank import first_rank
from autoconf.pipeline.tracing.model_setup import TrainingSetup
from autoconf.pipeline.tracing.recorder import SAMPLES, TraceError
from autoconf.pipeline.validation import rank_trace, trace_jobs
from autoconf.predictor.registry import MODELS

WIDTH = 128
QLORA = {"quantization": "nf4", "mixed_precision": "bf16"}
AT_ONCE = {"gradient_accumulation": False}


def bytes_per_token(peak_bytes: Callable[[int], float]) -> float:
    """Slope between two token counts of each sample."""
    few, many = 509, 1021
    return (peak_bytes(many) - peak_bytes(few)) / (SAMPLES * (many - few))


def bytes_per_token_and_layer(peak_bytes: Callable[[int, int], float]) -> float:
    """Slope between two depths of the slope between two token counts."""
    shallow, deep = (bytes_per_token(functools.partial(peak_bytes, layers)) for layers in (2, 3))
    return deep - shallow


@pytest.mark.parametrize(
    ("method", "gpus", "settings"),
    [
        ("full", 1, {"torch_dtype": "float32"}),
        ("lora", 1, {"adapter_dtype": "float32", "gradient_checkpointing": "none"}),
        ("qlora", 1, {"adapter_dtype": "float32", "quantization": "nf4"}),
        ("full", 2, {"torch_dtype": "float32", "sharding": "fsdp1"}),
        ("full", 2, {"torch_dtype": "float32", "sharding": "fsdp2", **AT_ONCE}),
    ],
)
def test_autocast_to_float16_allocates_what_autocast_to_bfloat16_does(method, gpus, settings):
    half = {"torch_dtype": "float16", "mixed_precision": "fp16"} | settings
    brain = {"torch_dtype": "bfloat16", "mixed_precision": "bf16"} | settings
    one, other = (rank_trace.run(small_job(method, gpus, **of), layers=2, tokens=61) for of in (half, brain))
    assert one.ops == other.ops
    assert np.array_equal(one.live_bytes, other.live_bytes)
    assert one.end_bytes == other.end_bytes


@pytest.mark.parametrize(
    ("method", "gpus", "settings"),
    [
        ("full", 1, {"gradient_checkpointing": "reentrant", "torch_dtype": "float32", "mixed_precision": "bf16"}),
        ("lora", 1, {"gradient_checkpointing": "none"}),
        ("lora", 1, {"loss": "chunked", "kernels": ["fast_rms_layernorm", "fast_rope_embeddings"]}),
        ("qlora", 1, {"upcast_unquantized": "norms", "lora_dropout": 0.1, "adapter_dtype": "float32", **QLORA}),
        ("full", 2, {"sharding": "fsdp2", **AT_ONCE}),
        ("full", 2, {"sharding": "fsdp1", "gradient_checkpointing": "reentrant", **AT_ONCE}),
    ],
)
def test_short_stacks_predict_whole_ones_to_the_byte(method, gpus, settings):
    job = small_job(method, gpus, layers=7, **settings)
    figures = replace(rank_trace.figures(job), states=0, step=0)
    sharded = any(share for _, _, share in [*figures.moments, figures.end])
    assert sharded == figures.shards_states == (gpus > 1)
    # 8 GPUs divide all of its dimensions: what is padded cannot be affine.
    other = replace(job, gpus=1 if gpus == 1 else 8)
    for tokens in (61, 1511):
        traced = rank_trace.run(other, layers=None, tokens=tokens)
        assert figures.peak_bytes(SAMPLES * tokens, other.gpus) == pytest.approx(traced.peak_bytes, abs=64)
        constant, per_token, sharded = figures.end
        at_end = constant + per_token * SAMPLES * tokens + sharded / other.gpus
        assert at_end == pytest.approx(traced.end_bytes, abs=64)


PARAMETERS = sum(shape.elements for shape in model_setup.trainable_shapes(small_job("full")))  # of two layers


@pytest.mark.parametrize(("sharding", "gpus"), [("fsdp1", 2), ("fsdp2", 4)])
def test_accumulated_gradients_are_whole_on_every_gpu_and_weights_are_not(sharding, gpus):
    held = {}
    for accumulating in (True, False):
        job = small_job("full", gpus, sharding=sharding, gradient_accumulation=accumulating)
        trace = rank_trace.run(job, layers=2, tokens=61)
        assert trace.end_bytes == pytest.approx(2 * 2 * PARAMETERS / gpus, abs=1024)  # all sharded for the optimizer
        held[accumulating] = trace.live_bytes[0]
    weights = whole = 2 * PARAMETERS
    assert held[True] == pytest.approx(weights / gpus + whole, abs=2048)  # and tokens
    # FSDP1 keeps its shard of the gradients until the next forward pass.
    assert held[False] == pytest.approx((2 if sharding == "fsdp1" else 1) * weights / gpus, abs=2048)


@pytest.mark.parametrize(("accumulating", "copies"), [(True, 3), (False, 2)])
def test_replicas_hold_weights_buckets_and_accumulated_gradients(accumulating, copies):
    job = small_job("full", 2, sharding="ddp", gradient_accumulation=accumulating)
    trace = rank_trace.run(job, layers=2, tokens=61)
    assert trace.live_bytes[0] == pytest.approx(copies * 2 * PARAMETERS, abs=2048)
    assert trace.end_bytes == pytest.approx(3 * 2 * PARAMETERS, abs=1024)


def test_replicas_are_as_large_on_any_number_of_gpus():
    traces = {gpus: rank_trace.run(small_job("full", gpus, sharding="ddp"), layers=2, tokens=61) for gpus in (1, 2, 8)}
    assert traces[2].peak_bytes == traces[8].peak_bytes == traces[1].peak_bytes + 2 * PARAMETERS  # the buckets


class Enclosed(nn.Module):
    """A unit of FSDP within a checkpoint, as in transformers 4.48."""

    def __init__(self, unit: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.unit, self.reentrant = unit, reentrant

    def forward(self, hidden: torch.Tensor, **options: Any) -> Any:
        return checkpoint(functools.partial(self.unit, **options), hidden, use_reentrant=self.reentrant)


def enclosed_peak(method: model_setup.Method, gpus: int, reentrant: bool, layers: int, tokens: int) -> int:
    """Peak of a second micro-batch whose checkpoints enclose FSDP's units."""
    way = "reentrant" if reentrant else "non-reentrant"
    job = small_job(method, gpus, layers, sharding="fsdp1", gradient_checkpointing=way, **AT_ONCE)
    with first_rank(job) as rank:
        for index, unit in enumerate(rank.layers):
            getattr(unit, "module", unit).gradient_checkpointing = False
            rank.layers[index] = Enclosed(unit, reentrant)
        with recorded(tokens, *rank.resident()) as recorder, recorder.resizes():
            rank.micro_batch(SAMPLES, tokens, reduce=True)
            rank.model.zero_grad()
            recorder.changes.clear()
            rank.micro_batch(SAMPLES, tokens, reduce=True)
        return peak(recorder)


@pytest.mark.parametrize(
    ("method", "gpus", "reentrant", "held"),
    [
        ("lora", 2, True, "input and gradient"),
        ("lora", 2, False, "input"),
        ("full", 2, True, "input"),
        ("lora", 1, True, "input"),
    ],
)
def test_fsdp1_holds_gradients_of_frozen_layers_that_a_reentrant_checkpoint_encloses(method, gpus, reentrant, held):
    """They live until the end of the backward pass, because a hook refers to the input of each recomputed layer."""
    slope = bytes_per_token_and_layer(functools.partial(enclosed_peak, method, gpus, reentrant))
    assert slope == 2 * WIDTH * (2 if held == "input and gradient" else 1)


@pytest.mark.parametrize(
    ("method", "gpus", "settings", "width"),
    [
        # The installed transformers checkpoint within FSDP's unit, whose hook then refers to nothing detached.
        ("lora", 2, {"sharding": "fsdp1", "gradient_checkpointing": "reentrant", **AT_ONCE}, 2 * WIDTH),
        ("lora", 1, {"gradient_checkpointing": "reentrant"}, 2 * WIDTH),
        ("qlora", 1, QLORA, 2 * WIDTH),
        # Norms in float32 make hidden states float32.
        ("qlora", 1, {"upcast_unquantized": "norms", **QLORA}, 4 * WIDTH),
        ("full", 1, {"torch_dtype": "float32"}, 4 * WIDTH),
    ],
)
def test_a_checkpointed_layer_keeps_its_input(method, gpus, settings, width):
    job = small_job(method, gpus, **settings)

    def traced_peak(layers: int, tokens: int) -> int:
        return rank_trace.run(job, layers=layers, tokens=tokens).peak_bytes

    assert bytes_per_token_and_layer(traced_peak) == width


def test_a_layer_without_checkpoint_keeps_far_more():
    job = small_job("full", gradient_checkpointing="none")

    def traced_peak(layers: int, tokens: int) -> int:
        return rank_trace.run(job, layers=layers, tokens=tokens).peak_bytes

    assert bytes_per_token_and_layer(traced_peak) > 20 * 2 * WIDTH


def test_the_peak_at_the_logits_is_the_sum_counted_by_hand():
    """log_softmax's backward: its output, its gradient and the result are alive, each in float32."""
    layers, vocabulary = 3, 8192
    job = small_job("full", layers=layers, vocabulary=vocabulary)
    checkpoints = layers * 2 * WIDTH  # the input of every layer, bfloat16
    last_hidden_state = 2 * WIDTH
    final_norm = 4 * WIDTH + 2 * WIDTH + 4  # the upcast input, the output, one float32 scale
    logits = 3 * 4 * vocabulary
    ids = 2 * 8  # tokens and mask, int64; the labels are gone
    positions = 8 + 2 * 2 * 32  # their numbers, cosines and sines, which all samples share
    per_token = bytes_per_token(lambda tokens: rank_trace.run(job, layers=None, tokens=tokens).peak_bytes)
    by_hand = checkpoints + last_hidden_state + final_norm + logits + ids + positions / SAMPLES
    assert per_token == by_hand


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_reference_stack_has_the_peak_of_version_1_1_0(method):
    """On one GPU the logits decide; in 1.1.0 attention has no workspace, and a micro-batch has one sample."""
    job = TrainingSetup(architectures()["granite-3.1-2b"], method, Stack())
    released = MemoryTable(read_figures(MODELS / "1.1.0" / FIGURES))
    row, tokens = released.rows[job.architecture.name, method, True], 50_000
    expected = released.peak_bytes(np.array([row]), np.array([1]), np.array([tokens]))[0]
    assert rank_trace.figures(job).peak_bytes(tokens, 1) == pytest.approx(expected, rel=0.001)


def test_layers_of_several_kinds_are_refused():
    """Short stacks would contain only the first kind of layers and be silently wrong."""
    with pytest.raises(TraceError, match=r"kinds of layers \(mamba, attention\) are not affine in depth"):
        rank_trace.figures(TrainingSetup(architectures()["granite-4.0-h-350m"], "lora", Stack()))


def test_figures_hold_the_optimizer_of_the_stack():
    job = small_job("full", optim="adafactor")
    figures = rank_trace.figures(job)
    assert (figures.states, figures.step) == optimizer_bytes("adafactor", model_setup.trainable_shapes(job))
    assert figures.step > 0


def test_the_recorder_follows_storages_that_are_resized_and_released():
    with FakeTensorMode(), recorded(61) as recorder, recorder.resizes():
        gathered = torch.empty(100)
        storage = gathered.untyped_storage()
        storage.resize_(0)
        assert recorder.live == 0
        recorder.changes.clear()
        storage.resize_(4000)
        assert recorder.live == peak(recorder) == 4000
        view = gathered[:50]
        del gathered, storage
        assert recorder.live == 4000  # the view's
        del view
        assert recorder.live == 0


def test_a_tensor_of_tokens_by_tokens_is_refused():
    with FakeTensorMode():
        hidden = torch.empty(2, 61, 8)
        with recorded(61, hidden), pytest.raises(TraceError, match=r"tokens x tokens: \(2, 61, 61\)"):
            hidden @ hidden.transpose(1, 2)


def test_a_program_that_depends_on_the_tokens_is_refused(monkeypatch):
    """This includes an op that allocates the same memory, because moments are matched by op."""
    forward = nn.Linear.forward

    def another_op_for_long_inputs(module: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
        return forward(module, hidden * 2 if hidden.shape[-2] == rank_trace.TOKENS[0] else hidden / 2)

    monkeypatch.setattr(nn.Linear, "forward", another_op_for_long_inputs)
    with pytest.raises(TraceError, match=f"2 layers, {rank_trace.TOKENS[1]} tokens and 1 GPUs run other"):
        rank_trace.figures(small_job("lora", layers=7))


def test_a_job_that_cannot_be_traced_says_why():
    """The problem becomes a row of the table, so that the other jobs are traced."""
    job = small_job("lora", lora_targets=["no_such_layer"])
    found = trace_jobs.traced(
        {
            "architecture": job.architecture.model_dump(),
            "method": job.method,
            "stack": job.stack.model_dump(),
            "gpus": job.gpus,
        }
    )
    assert list(found) == ["problem"]
    assert found["problem"].startswith("NoMatchingPeftModuleError: Target modules {'no_such_layer'} not found")
