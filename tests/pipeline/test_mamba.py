"""The fake Mamba-2 kernel holds the same memory as the real one."""

from __future__ import annotations

from typing import Any

import pytest

for package in ("torch", "transformers", "peft", "bitsandbytes"):
    pytest.importorskip(package, reason="versions are traced with the extra [build], installed on Python 3.11")

import torch
from recording import peak, recorded, saved_for_backward
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from autoconf.jobs.stack import Stack
from autoconf.pipeline.catalog import architectures
from autoconf.pipeline.kernels import cuda as cuda_kernels
from autoconf.pipeline.kernels import mamba
from autoconf.pipeline.tracing import model_setup
from autoconf.pipeline.tracing.first_rank import first_rank
from autoconf.pipeline.tracing.model_setup import TrainingSetup

QLORA = {"quantization": "nf4", "mixed_precision": "bf16"}
# Those of granite-4.0-h-1b, with two groups instead of one.
HEADS, HEAD_DIM, GROUPS, STATE, CHUNK, WIDTH = 48, 64, 2, 128, 256, 1536
BATCH, TOKENS, CHUNKS = 2, 509, 2
INNER = HEADS * HEAD_DIM
CONVOLVED = INNER + 2 * GROUPS * STATE
PROJECTED = INNER + CONVOLVED + HEADS

# Bytes, named as in mamba_ssm/ops/triton/ssd_combined.py; what is per token is bfloat16.
XBC, OUT, ZXBCDT, DT = (2 * BATCH * TOKENS * width for width in (CONVOLVED, INNER, PROJECTED, HEADS))
RSTD = 4 * BATCH * TOKENS * GROUPS
DA_CUMSUM = 4 * BATCH * HEADS * CHUNKS * CHUNK  # and dt_out, ddt, ddA
STATES = 4 * BATCH * CHUNKS * HEADS * HEAD_DIM * STATE  # in float32
FINAL_STATES = STATES // CHUNKS
CB = 4 * BATCH * CHUNKS * GROUPS * CHUNK * CHUNK


def weights(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        "conv_weight": (CONVOLVED, 4), "conv_bias": (CONVOLVED,), "dt_bias": (HEADS,), "A": (HEADS,), "D": (HEADS,),
        "rmsnorm_weight": (INNER,), "outproj_weight": (WIDTH, INNER),
    }  # fmt: skip
    return {
        name: torch.empty(shape, dtype=torch.float32 if name == "A" else dtype, requires_grad=True)
        for name, shape in shapes.items()
    }


def scan(projected: torch.Tensor, held: dict[str, torch.Tensor]) -> torch.Tensor:
    sizes: dict[str, Any] = {"chunk_size": CHUNK, "headdim": HEAD_DIM, "ngroups": GROUPS}
    return mamba.split_conv1d_scan_combined(projected, **held, **sizes)


def test_the_kernel_saves_its_input_its_scan_and_the_scale_of_its_norm():
    with FakeTensorMode():
        held = weights(torch.bfloat16)
        projected = torch.empty(BATCH, TOKENS, PROJECTED, dtype=torch.bfloat16, requires_grad=True)
        with recorded(TOKENS, projected, *held.values()) as recorder, saved_for_backward() as saved:
            out = scan(projected, held)
        new = [t.nbytes for t in saved if all(t is not tensor for tensor in (projected, *held.values()))]
        assert sorted(new) == sorted([OUT, RSTD])
        assert recorder.live == OUT + RSTD + out.nbytes
        until_the_end = XBC + 2 * DA_CUMSUM + STATES // 2 + FINAL_STATES  # states in bfloat16
        passing_states = XBC + 2 * DA_CUMSUM + STATES + FINAL_STATES + STATES // 2
        assert peak(recorder) == max(passing_states, until_the_end + OUT + max(CB, OUT + RSTD + out.nbytes))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_backward_pass_computes_the_scan_again_with_states_in_float32(dtype):
    wider = dtype.itemsize // 2
    with FakeTensorMode():
        held = weights(dtype)
        projected = torch.empty(BATCH, TOKENS, PROJECTED, dtype=dtype, requires_grad=True)
        out = scan(projected, held)
        gradient = torch.empty_like(out)
        with recorded(TOKENS, projected, *held.values(), *saved_by(out), out, gradient) as recorder:
            out.backward(gradient)
        saved = wider * OUT + RSTD  # released
        assert recorder.live == wider * ZXBCDT + sum(t.nbytes for t in held.values()) - saved
        assert projected.grad is not None and all(weight.grad is not None for weight in held.values())
        # The recomputed output and xBC, gradients of the two, of the norm's input and of zxbcdt.
        entered = wider * (3 * OUT + 2 * XBC + ZXBCDT) + held["rmsnorm_weight"].nbytes
        recomputed = wider * DT + 2 * DA_CUMSUM + CB + FINAL_STATES
        of_chunks = 4 * BATCH * HEADS * CHUNKS
        # States and their gradient in float32, and both in the input's dtype, as long as that is another.
        narrow_gradient, narrow = wider * STATES // 2, STATES // 2 if wider == 1 else 0
        passing_back = 2 * STATES + narrow_gradient + narrow + of_chunks * (HEAD_DIM * STATE // 64 + 1)
        groups = 2 * 4 * BATCH * TOKENS * GROUPS * STATE  # dB and dC, float32
        states_and_groups = 2 * narrow_gradient + of_chunks + 4 * HEADS + groups
        # ddt, ddA_next and ddA_cumsum_prev; dCB and its sum.
        summing_products = 3 * DA_CUMSUM + 2 * CB
        # The same and ddA_prev; dCB; ddA, and before it eight parts of it.
        summing_decays = 4 * DA_CUMSUM + CB + (CHUNK // 32 + 1) * DA_CUMSUM
        moments = [
            entered + recomputed + now
            for now in (passing_back, states_and_groups + summing_products, states_and_groups + summing_decays)
        ]
        assert set(moments) <= {change.live for change in recorder.changes}
        assert peak(recorder) == max(moments)


def saved_by(out: torch.Tensor) -> list[torch.Tensor]:
    node: Any = out.grad_fn
    return [tensor for tensor in node.saved_tensors if tensor is not None]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_under_autocast_the_kernel_keeps_a_bfloat16_copy_of_the_projection_it_ends_with(dtype):
    with FakeTensorMode(), cuda_kernels.on_cuda(nn.Identity(), None), torch.autocast("cuda", torch.bfloat16):
        held = weights(torch.float32)
        projected = torch.empty(BATCH, TOKENS, PROJECTED, dtype=dtype, requires_grad=True)
        with recorded(TOKENS, projected, *held.values()), saved_for_backward() as saved:
            out = scan(projected, held)
        assert out.dtype == torch.bfloat16
        assert held["outproj_weight"].numel() * 2 in [t.nbytes for t in saved]
        assert held["outproj_weight"].nbytes not in [t.nbytes for t in saved]
        out.backward(torch.empty_like(out))
        assert held["outproj_weight"].grad is not None and held["outproj_weight"].grad.dtype == torch.float32


def hybrid(method: model_setup.Method, **settings: Any) -> TrainingSetup:
    """Two layers of width 768, one of each kind."""
    architecture = architectures()["granite-4.0-h-350m"]
    config = {**architecture.shortened(["mamba", "attention"]), "vocab_size": 64}
    return TrainingSetup(architecture.model_copy(update={"config": config}), method, Stack(**settings))


@pytest.mark.parametrize(
    ("method", "settings"), [("full", {}), ("lora", {"lora_targets": "all-linear"}), ("qlora", QLORA)]
)
def test_mamba_layers_train_with_the_kernel(method, settings, monkeypatch):
    calls = []
    fused = mamba.split_conv1d_scan_combined
    monkeypatch.setattr(
        mamba, "split_conv1d_scan_combined", lambda *a, **k: (calls.append(a[0].shape), fused(*a, **k))[1]
    )
    with first_rank(hybrid(method, **settings)) as rank:
        rank.micro_batch(BATCH, TOKENS, reduce=False)
    assert calls == 2 * [(BATCH, TOKENS, 2 * 1536 + 2 * 128 + 48)]  # in the forward pass and recomputed


def test_a_mamba_layer_without_checkpointing_holds_the_bytes_counted_by_hand():
    inner, projected = 1536, 2 * 1536 + 2 * 128 + 48
    with first_rank(hybrid("full", gradient_checkpointing="none")) as rank:
        layer = rank.layers[0].mamba
        hidden = torch.empty(BATCH, TOKENS, 768, dtype=torch.bfloat16, requires_grad=True)
        with recorded(TOKENS, hidden, *rank.resident()) as recorder:
            out = layer(hidden)
        per_token = 2 * (projected + inner) + 4  # the projection, the scan and the scale of the norm
        decays = 2 * 4 * 48  # the exponential that autograd saves, and A
        assert recorder.live == BATCH * TOKENS * per_token + decays + out.nbytes


@pytest.mark.parametrize("gpus", [1, 2])
def test_weights_that_a_kernel_reads_are_not_packed(gpus):
    job = hybrid("qlora", **QLORA)
    model = model_setup.build_model(TrainingSetup(job.architecture, "qlora", job.stack, gpus)).get_base_model()
    layer = model.model.layers[0]
    assert type(layer.mamba.out_proj) is nn.Linear and layer.mamba.out_proj.weight.dtype == torch.bfloat16
    assert isinstance(layer.mamba.in_proj, cuda_kernels.Linear4bit)
    assert isinstance(layer.shared_mlp.output_linear, cuda_kernels.Linear4bit)
