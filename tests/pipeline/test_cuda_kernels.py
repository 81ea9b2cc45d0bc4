"""The fake CUDA kernels hold the same memory as the real ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

for package in ("torch", "transformers", "peft", "bitsandbytes"):
    pytest.importorskip(package, reason="versions are traced with the extra [build], installed on Python 3.11")

import bitsandbytes
import peft
import torch
import torch.nn.functional as F
from recording import peak, recorded, saved_for_backward
from small_jobs import small_job
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from autoconf.jobs.stack import Stack
from autoconf.pipeline.catalog import architectures
from autoconf.pipeline.kernels import cuda as cuda_kernels
from autoconf.pipeline.tracing import model_setup
from autoconf.pipeline.tracing.first_rank import first_rank
from autoconf.pipeline.tracing.recorder import TraceError
from autoconf.pipeline.validation import rank_trace

QLORA = {"quantization": "nf4", "mixed_precision": "bf16"}
BATCH, TOKENS, HEADS, HEAD_DIM = 2, 509, 8, 16


def projections(kv_heads: int) -> list[torch.Tensor]:
    def heads(count: int) -> torch.Tensor:
        return torch.empty(BATCH, TOKENS, count, HEAD_DIM, dtype=torch.bfloat16, requires_grad=True)

    return [heads(HEADS), heads(kv_heads), heads(kv_heads)]


OUTPUT = 2 * BATCH * TOKENS * HEADS * HEAD_DIM  # bytes of a bfloat16 tensor like the query
FLOATS = 4 * BATCH * TOKENS * HEADS  # one float32 for each query and head


@pytest.mark.parametrize("kv_heads", [1, 2, HEADS])
def test_flash_attention_holds_its_output_a_log_sum_exp_and_its_workspace(kv_heads):
    with FakeTensorMode():
        query, key, value = projections(kv_heads)
        gradient = torch.empty_like(query)
        with recorded(TOKENS, query, key, value, gradient) as recorder, saved_for_backward() as saved:
            out = cuda_kernels.flash_attention(query, key, value)
            assert recorder.live == peak(recorder) == OUTPUT + FLOATS
            assert sorted(t.nbytes for t in saved) == sorted([OUTPUT, OUTPUT, FLOATS, key.nbytes, value.nbytes])
            out.backward(gradient)
        gradients = OUTPUT + key.nbytes + value.nbytes
        workspace = FLOATS + 2 * OUTPUT  # dot products, and dq in float32
        of_every_query_head = 2 * OUTPUT if kv_heads < HEADS else 0  # dk and dv
        assert peak(recorder) == OUTPUT + FLOATS + gradients + workspace + of_every_query_head
        assert [query.grad.shape, key.grad.shape, value.grad.shape] == [query.shape, key.shape, value.shape]


def test_only_attention_by_a_kernel_passes_the_recorder():
    """Tensors of tokens x tokens are refused, so every trace proves that its attention has none."""
    with FakeTensorMode():
        query, key, value = (t.transpose(1, 2) for t in projections(HEADS))
        with recorded(TOKENS, query, key, value), pytest.raises(TraceError, match="tokens x tokens"):
            torch.softmax(query @ key.transpose(2, 3), -1) @ value


@pytest.mark.parametrize("method", ["full", "lora"])
def test_models_run_the_kernel_in_every_layer(method, monkeypatch):
    calls = []
    attend = cuda_kernels.flash_attention
    monkeypatch.setattr(cuda_kernels, "flash_attention", lambda *a, **k: (calls.append(a[0].shape), attend(*a, **k))[1])
    with first_rank(small_job(method, layers=3, gradient_checkpointing="none")) as rank:
        rank.micro_batch(BATCH, TOKENS, reduce=False)
    assert calls == 3 * [(BATCH, TOKENS, 4, 32)]


def test_values_narrower_than_queries_are_widened_for_the_kernel(monkeypatch):
    """transformers pads DeepSeek's values from 128 to 192 and cuts the output; the kernel saves the padded copy."""
    architecture = architectures()["deepseek-v2-lite"]
    config = {**architecture.shortened(["dense"]), "vocab_size": 64}
    job = model_setup.TrainingSetup(
        architecture.model_copy(update={"config": config}), "full", Stack(gradient_checkpointing="none")
    )
    calls, projected = [], []
    attend = cuda_kernels.flash_attention
    monkeypatch.setattr(cuda_kernels, "flash_attention", lambda *a, **k: (calls.append(a[:3]), attend(*a, **k))[1])
    with first_rank(job) as rank:
        rank.layers[0].self_attn.o_proj.register_forward_pre_hook(lambda _, args: projected.append(args[0].shape))
        rank.micro_batch(BATCH, TOKENS, reduce=False)
    assert [t.shape for t in calls[0]] == 3 * [(BATCH, TOKENS, 16, 192)]
    assert projected == [(BATCH, TOKENS, 16 * 128)]


@contextmanager
def on_cuda() -> Iterator[None]:
    with FakeTensorMode(), cuda_kernels.on_cuda(nn.Identity(), None):
        yield


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dropout_saves_one_byte_for_each_element(dtype):
    with on_cuda():
        hidden = torch.empty(BATCH, TOKENS, 128, dtype=dtype, requires_grad=True)
        with recorded(TOKENS, hidden) as recorder, saved_for_backward() as saved:
            out = nn.Dropout(0.1)(hidden)
        assert [t.nbytes for t in saved] == [hidden.numel()]
        assert recorder.live == peak(recorder) == out.nbytes + hidden.numel()


def test_no_dropout_holds_nothing():
    with on_cuda():
        hidden = torch.empty(BATCH, TOKENS, 128, requires_grad=True)
        with recorded(TOKENS, hidden) as recorder:
            assert nn.Dropout(0.0)(hidden) is hidden
            assert nn.Dropout(0.5).eval()(hidden) is hidden
        assert recorder.live == 0


def grouped_product(dtype: torch.dtype, rows_train: bool, weight_trains: bool) -> list[int]:
    """Bytes that a product of 509 rows with the weights of 4 groups saves, holds, needs at its peak and leaves."""
    with on_cuda():
        rows = torch.empty(TOKENS, 64, dtype=dtype, requires_grad=rows_train)
        weight = torch.empty(4, 128, 64, dtype=dtype, requires_grad=weight_trains)
        ends = torch.empty(4, dtype=torch.int32)
        with recorded(TOKENS, rows, weight, ends) as recorder, saved_for_backward() as saved:
            out = F.grouped_mm(rows, weight.transpose(-2, -1), offs=ends)
            of_values = sum(t.nbytes for t in saved if t.dtype == dtype)
            after_forward = recorder.live
            out.backward(torch.empty_like(out))
            return [of_values, after_forward, peak(recorder), recorder.live]


@pytest.mark.parametrize(("rows_train", "weight_trains"), [(True, True), (True, False), (False, True)])
def test_a_grouped_product_in_float32_holds_twice_what_one_in_bfloat16_does(rows_train, weight_trains):
    half, whole = (grouped_product(dtype, rows_train, weight_trains) for dtype in (torch.bfloat16, torch.float32))
    assert whole == [2 * bytes_ for bytes_ in half]
    assert whole[0] == 4 * (rows_train * 4 * 128 * 64 + weight_trains * TOKENS * 64)


@pytest.mark.parametrize("name", ["olmoe-1b-7b", "granite-4.0-h-tiny"])
def test_experts_that_became_float32_are_traced(name):
    """PEFT's prepare_model_for_kbit_training makes them float32, because they are not linear layers in 4 bits."""
    job = model_setup.TrainingSetup(architectures()[name], "qlora", Stack(upcast_unquantized="norms", **QLORA))
    layers = list(dict.fromkeys(job.architecture.kinds))
    trace = rank_trace.run(job, layers=layers, tokens=61)
    experts = sum(p.numel() for n, p in model_setup.build_model(job, layers).named_parameters() if ".experts." in n)
    assert trace.live_bytes[0] > 4 * experts


def test_nothing_stays_patched():
    before = (F.dropout, F.cross_entropy, torch.where, torch.cuda.is_available())
    with on_cuda():
        assert (F.dropout, F.cross_entropy, torch.where, torch.cuda.is_available()) != before
    assert (F.dropout, F.cross_entropy, torch.where, torch.cuda.is_available()) == before


@pytest.mark.parametrize("checkpointing", ["reentrant", "non-reentrant"])
@pytest.mark.parametrize(("mixed", "computed"), [("bf16", torch.bfloat16), ("no", torch.float32)])
def test_a_recomputed_layer_runs_under_the_autocast_of_its_first_pass(checkpointing, mixed, computed):
    job = small_job("full", gradient_checkpointing=checkpointing, mixed_precision=mixed, torch_dtype="float32")
    computed_in, attended_in = [], []
    with first_rank(job) as rank:
        attention = rank.layers[-1].self_attn
        attention.q_proj.register_forward_hook(lambda _, __, out: computed_in.append(out.dtype))
        attention.register_forward_hook(lambda *_: attended_in.append(torch.is_autocast_enabled("cuda")))
        rank.micro_batch(BATCH, TOKENS, reduce=False)
    assert computed_in == [computed, computed]
    assert attended_in == [mixed == "bf16"] * 2


@pytest.mark.parametrize(("enabled", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_autocast_runs_losses_in_float32_as_on_cuda(enabled, dtype):
    with on_cuda(), torch.autocast("cuda", torch.bfloat16, enabled=enabled):
        logits = torch.empty(TOKENS, 64, dtype=torch.bfloat16)
        loss = nn.CrossEntropyLoss()(logits, torch.zeros(TOKENS, dtype=torch.long))
        assert (loss.dtype, F.softmax(logits, -1).dtype) == (dtype, dtype)


def test_where_routes_tokens_evenly_over_experts():
    with FakeTensorMode(), cuda_kernels.on_cuda(nn.Identity(), experts=8):
        top_k, tokens = torch.where(torch.empty(2, 800, dtype=torch.bool))
        assert len(top_k) == len(tokens) == 2 * 800 // 8
        # With values to choose from it is torch's own.
        assert torch.where(torch.empty(5, dtype=torch.bool), torch.zeros(5), torch.ones(5)).shape == (5,)


def test_a_4_bit_layer_takes_as_many_bytes_as_bitsandbytes_own():
    rows, columns = 512, 1024
    packed, state = bitsandbytes.functional.quantize_4bit(
        torch.randn(rows, columns), quant_type="nf4", compress_statistics=True
    )
    for storage in (torch.uint8, torch.bfloat16):
        layer = cuda_kernels.Linear4bit(nn.Linear(columns, rows, device="meta"), storage)
        assert layer.weight.dtype == storage and layer.weight.nbytes == packed.nbytes
        layer.allocate_absmax()
        assert [t.nbytes for t in layer.absmax] == [state.absmax.nbytes, state.state2.absmax.nbytes]
        nbytes = layer.weight.nbytes + sum(t.nbytes for t in layer.absmax)
        assert nbytes / (rows * columns) == 0.5 + 1 / 64 + 4 / (64 * 256)


def test_bitsandbytes_saves_nothing_but_the_packed_weight():
    packed, state = bitsandbytes.functional.quantize_4bit(torch.randn(512, 1024), quant_type="nf4")
    hidden = torch.randn(7, 1024, requires_grad=True)
    with saved_for_backward() as saved:
        out = bitsandbytes.matmul_4bit(hidden, packed.t(), quant_state=state)
    kept = [t for t in out.grad_fn.tensors if t is not None]  # past save_for_backward
    assert (saved, [t.nbytes for t in kept]) == ([], [packed.nbytes])


@contextmanager
def fake_linear_4bit(compute_dtype: torch.dtype) -> Iterator[cuda_kernels.Linear4bit]:
    layer = cuda_kernels.Linear4bit(nn.Linear(128, 448, bias=False, device="meta"), torch.uint8)
    layer.compute_dtype = compute_dtype
    with FakeTensorMode():
        model_setup.materialize(layer)
        yield layer


WEIGHT = 2 * 128 * 448  # bytes, dequantized to bfloat16


def test_a_4_bit_product_saves_nothing_but_its_packed_weight():
    with fake_linear_4bit(torch.bfloat16) as layer:
        hidden = torch.empty(BATCH, TOKENS, 128, dtype=torch.bfloat16, requires_grad=True)
        with recorded(TOKENS, hidden, layer.weight, *layer.absmax) as recorder, saved_for_backward() as saved:
            out = layer(hidden)
        assert [t.nbytes for t in saved] == [layer.weight.nbytes]
        assert recorder.live == out.nbytes
        assert peak(recorder) == WEIGHT + out.nbytes
        gradient = torch.empty_like(out)
        with recorded(TOKENS, hidden, layer.weight, out, gradient, *layer.absmax) as recorder:
            out.backward(gradient)
        assert recorder.live == hidden.nbytes  # its gradient; the weight has none
        assert peak(recorder) == WEIGHT + hidden.nbytes
        # Before the weight come its absmax in float32, one for 64 parameters.
        assert recorder.changes[0].live == 4 * 128 * 448 // 64


def test_a_float32_input_asks_for_a_float32_copy_of_the_weight():
    with fake_linear_4bit(torch.float32) as layer:
        hidden = torch.empty(BATCH, TOKENS, 128, requires_grad=True)
        with recorded(TOKENS, hidden, layer.weight, *layer.absmax) as recorder:
            out = layer(hidden)
        assert out.dtype == torch.float32
        assert recorder.live == out.nbytes
        # In addition to the bfloat16 copy during the cast, and to the output.
        assert peak(recorder) == max(3 * WEIGHT, 2 * WEIGHT + out.nbytes)


@pytest.mark.parametrize("targets", ["default", "all-linear"])
@pytest.mark.parametrize("gpus", [1, 2])
def test_peft_recognizes_4_bit_layers_and_the_head_is_not_quantized(gpus, targets):
    model = model_setup.build_model(small_job("qlora", gpus, lora_targets=targets, **QLORA))
    adapted = [m for m in model.modules() if isinstance(m, peft.tuners.lora.LoraLayer)]
    assert adapted and all(type(m) is peft.tuners.lora.bnb.Linear4bit for m in adapted)
    base = model.get_base_model()
    quantized = [name for name, m in base.named_modules() if isinstance(m, cuda_kernels.Linear4bit)]
    assert len(quantized) == 2 * 7  # attention's four and the MLP's three
    assert type(base.lm_head) is nn.Linear and base.lm_head.weight.dtype == torch.bfloat16
    packed = base.model.layers[0].mlp.down_proj
    assert getattr(packed, "base_layer", packed).weight.dtype == (torch.uint8 if gpus == 1 else torch.bfloat16)
