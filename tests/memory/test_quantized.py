"""The bytes of quantized bases, against the layers of bitsandbytes and the shapes of packed weights."""

from __future__ import annotations

import numpy as np
import pytest

for package in ("torch", "transformers", "peft", "bitsandbytes"):
    pytest.importorskip(package, reason="versions are traced with the extra [build], installed on Python 3.11")

import bitsandbytes
import torch
from bitsandbytes.autograd._functions import MatMul8bitLt, MatmulLtState
from bitsandbytes.functional import int8_vectorwise_quant, quantize_4bit
from small_jobs import small_job
from torch import nn

from autoconf.jobs.presets import SETTINGS, training_stack
from autoconf.memory.model import gpu_job
from autoconf.memory.quantized import QuantizedBase, quantized_base
from autoconf.pipeline.tracing.model_setup import build_model
from autoconf.pipeline.tracing.trace_model import units
from autoconf.predictor import registry

SMALL = small_job("full", layers=3, vocabulary=96)


def base_of(kind) -> QuantizedBase:
    quantized = units(SMALL.architecture, "qlora", "all-linear")
    return quantized_base(kind, quantized.units, units(SMALL.architecture, "full", "default"), hidden_bytes=2)


def linear_layers() -> list[nn.Linear]:
    model = build_model(SMALL)
    return [m for m in model.modules() if isinstance(m, nn.Linear) and m is not model.get_output_embeddings()]


def weights_of(kind) -> float:
    quantized = units(SMALL.architecture, "qlora", "all-linear").units.quantized
    assert quantized == sum(layer.weight.numel() for layer in linear_layers())
    base = base_of(kind)
    return base.per_weight * quantized + base.constants


def test_int8_weights_have_the_bytes_that_bitsandbytes_makes():
    made = 0
    for layer in linear_layers():
        packed, scales, _ = int8_vectorwise_quant(torch.randn(layer.weight.shape, dtype=torch.float16))
        made += packed.nbytes + scales.nbytes
    assert weights_of("int8") == made


@pytest.mark.parametrize(("kind", "nested"), [("nf4", True), ("nf4_single", False)])
def test_nf4_weights_have_the_bytes_that_bitsandbytes_makes(kind, nested):
    made = 0
    for layer in linear_layers():
        packed, state = quantize_4bit(torch.randn(layer.weight.shape), quant_type="nf4", compress_statistics=nested)
        made += packed.nbytes + state.absmax.nbytes + (state.state2.absmax.nbytes if nested else 0)
    assert weights_of(kind) == made


@pytest.mark.parametrize("kind", ["gptq", "awq"])
def test_packed_weights_have_scales_and_zeros_for_each_group_of_128(kind):
    expected = 0
    for layer in linear_layers():
        rows, groups = layer.in_features, -(-layer.in_features // 128)
        expected += 4 * (rows // 8) * layer.out_features  # qweight: int32 with eight weights
        expected += 2 * groups * layer.out_features + 4 * groups * layer.out_features // 8  # scales, qzeros
        expected += 4 * rows if kind == "gptq" else 0  # g_idx
    assert weights_of(kind) == expected


def test_bitsandbytes_keeps_the_input_of_an_int8_layer_whose_weight_is_frozen():
    layer = bitsandbytes.nn.Linear8bitLt(32, 16, bias=False, has_fp16_weights=False)
    packed, scales, _ = int8_vectorwise_quant(torch.randn(16, 32, dtype=torch.float16))
    state = MatmulLtState()
    state.CB, state.SCB, state.is_training = packed, scales, True
    layer.weight.requires_grad_(False)
    x = torch.randn(5, 32, dtype=torch.float16, requires_grad=True)
    out = MatMul8bitLt.apply(x, packed, None, None, state)
    columns, _, kept = out.grad_fn.tensors
    assert columns is None
    assert kept.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    assert base_of("int8").kept_per_token > 0 == base_of("int8").kept


@pytest.mark.parametrize("checkpointing", ["none", "non-reentrant"])
def test_more_bits_never_need_less(checkpointing):
    table = registry.load("3.0.0").memory.table
    gpus, tokens = np.ones(4, int), np.array([1, 1024, 8192, 65536])
    peaks = []
    for kind in ("nf4", "nf4_single", "int8"):
        given = {"quantization": kind, "gradient_checkpointing": checkpointing}
        stack = training_stack("qlora", False, "trl", *(given.get(setting) for setting in SETTINGS))
        peaks.append(gpu_job(table, "llama-7b", "qlora", stack, several=False).memory.peak_bytes(gpus, tokens))
    assert (np.diff(peaks, axis=0) > 0).all()
