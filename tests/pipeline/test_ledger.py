"""A ledger of one short run: sizes by tokens and rank, and the parts that storages belong to."""

from __future__ import annotations

import numpy as np
import pytest

for package in ("torch", "transformers", "peft", "bitsandbytes"):
    pytest.importorskip(package, reason="versions are traced with the extra [build], installed on Python 3.11")

import torch
from small_jobs import small_job
from torch._subclasses.fake_tensor import FakeTensorMode

from autoconf.pipeline.tracing import (
    ledger,
    model_setup,
    trace_model,
)
from autoconf.pipeline.tracing.ledger import TOKENS, Size
from autoconf.pipeline.tracing.recorder import EMBEDDING, HEAD, LOSS, SAMPLES, Part, Recorder, TraceError
from autoconf.pipeline.validation import rank_trace

RANK = 29
KINDS = ["layer"] * 3


def peak_bytes(storages: ledger.Storages, tokens: int, rank: int) -> float:
    """The most that is alive at once, at other tokens and another rank."""
    sizes = storages.sizes @ [1, tokens, rank, rank * tokens]
    at = storages.born[:, None]
    return float((((storages.born <= at) & (storages.dead > at)) * sizes).sum(axis=1).max())


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("full", {"gradient_checkpointing": "none"}),
        ("full", {"loss": "chunked", "mixed_precision": "bf16", "torch_dtype": "float32"}),
        ("lora", {"lora_dropout": 0.1, "adapter_dtype": "float32", "gradient_checkpointing": "reentrant"}),
        ("qlora", {"quantization": "nf4", "mixed_precision": "bf16", "gradient_checkpointing": "none"}),
    ],
)
def test_one_run_predicts_runs_with_other_tokens_and_ranks(method, settings):
    job = small_job(method, layers=len(KINDS), gradient_accumulation=False, **settings)
    storages = ledger.trace(job, KINDS, RANK)
    for tokens, rank in ((509, 4), (4093, 64)):
        other = job.with_rank(rank)
        model = model_setup.build_model(other)
        resident = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
        resident += trace_model._absmax(model)
        traced = rank_trace.run(other, layers=None, tokens=tokens).peak_bytes - resident
        # The ledger keeps the labels, of 8 bytes each.
        assert 0 <= peak_bytes(storages, SAMPLES * tokens, rank) - traced <= 8 * SAMPLES * tokens + 16


@pytest.mark.parametrize(
    ("elements", "size"),
    [
        (1000, Size(constant=2000)),
        (SAMPLES * TOKENS * 128, Size(per_token=256)),
        (SAMPLES * (TOKENS - 1) * 128, Size(constant=-SAMPLES * 256, per_token=256)),  # shifted labels
        (1000 * RANK, Size(constant_per_rank=2000)),
        (SAMPLES * TOKENS * RANK, Size(per_token_per_rank=2)),
    ],
)
def test_a_size_says_which_dimensions_a_storage_has(elements, size):
    assert ledger._size(2 * elements, 2, RANK) == size


@pytest.mark.parametrize("part", [1, 2])
def test_a_storage_of_half_the_tokens_is_known_if_a_sample_has_twice_as_many(part):
    tokens = 2 * TOKENS
    assert ledger._size(2 * SAMPLES * tokens // part * 128, 2, RANK, tokens) == Size(per_token=256 / part)


def test_a_rank_divides_no_dimension_of_the_model():
    job = small_job("lora")
    assert ledger.rank_for(job.architecture, ["layer"] * 2) == 29
    wide = {**job.architecture.config, "intermediate_size": 29 * 31}
    architecture = job.architecture.model_copy(update={"config": wide})
    assert ledger.rank_for(architecture, ["layer"] * 2) == 37


def test_a_model_with_a_dimension_of_the_tokens_is_refused():
    job = small_job("lora")
    config = {**job.architecture.config, "vocab_size": 2 * TOKENS}
    with pytest.raises(TraceError, match=f"a dimension of the model is a multiple of {TOKENS}"):
        ledger.rank_for(job.architecture.model_copy(update={"config": config}), ["layer"] * 2)


def test_a_tensor_of_tokens_by_tokens_is_refused():
    with FakeTensorMode(), pytest.raises(TraceError, match="tokens x tokens"):
        hidden = torch.empty(SAMPLES, TOKENS, 8)
        with Recorder(TOKENS):
            hidden @ hidden.transpose(1, 2)


def test_storages_belong_to_the_part_that_made_them():
    storages = ledger.trace(small_job("lora", layers=3, lora_targets="attention"), KINDS, RANK)
    order = list(dict.fromkeys(storages.parts))
    assert order == [
        EMBEDDING, *(Part("layer", i) for i in range(3)), HEAD, LOSS,
        *(Part("layer", i, True, late) for i in (2, 1, 0) for late in (False, True)),
    ]  # fmt: skip


def test_gradients_are_those_of_the_parameters_layer_by_layer():
    job = small_job("full", layers=3, gradient_accumulation=False)
    storages = ledger.trace(job, KINDS, RANK)
    model = model_setup.build_model(job)
    layers = model_setup.decoder_layers(model)
    by_layer = [sum(p.nbytes for p in layer.parameters()) for layer in layers]
    rest = sum(p.nbytes for p in model.parameters()) - sum(by_layer)
    found = [storages.sizes[storages.gradient_of == layer][:, 0].sum() for layer in (0, 1, 2, -1)]
    assert found == [*by_layer, rest]
    assert (storages.dead[storages.gradient_of > -2] == len(storages.born)).all()  # left at the end
    assert np.all(storages.sizes[storages.gradient_of > -2][:, 1:] == 0)
