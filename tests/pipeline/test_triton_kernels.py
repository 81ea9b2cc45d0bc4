"""The fake Triton kernels hold the same memory as the real ones, and less than the plain ops that they replace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

for package in ("torch", "transformers", "peft", "bitsandbytes"):
    pytest.importorskip(package, reason="versions are traced with the extra [build], installed on Python 3.11")

import torch
import torch.nn.functional as F
from recording import peak, recorded
from small_jobs import small_job
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers.models.mistral import modeling_mistral

from autoconf.pipeline.kernels import triton as triton_kernels
from autoconf.pipeline.tracing.first_rank import first_rank
from autoconf.pipeline.validation import rank_trace

BATCH, TOKENS, WIDTH = 2, 509, 128
ROWS = BATCH * TOKENS


def bytes_of(function: Callable[..., Any], *inputs: torch.Tensor) -> tuple[int, int, int]:
    """Bytes that a function adds to its inputs: held afterwards, at its peak, and added by its backward pass."""
    with recorded(TOKENS, *inputs) as recorder:
        out = function(*inputs)
        held, most = recorder.live, peak(recorder)
        outs = out if isinstance(out, tuple) else (out,)
        gradients = [torch.empty_like(t) for t in outs]
        before = recorder.live
        recorder.changes.clear()
        torch.autograd.backward(outs, gradients)
        return held, most, max(0, peak(recorder) - before)


def activation(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """A tensor within a model, not a leaf, because the gradient of a leaf may be copied."""
    return torch.empty(shape, dtype=dtype, requires_grad=True).view(shape)


def test_rms_norm_saves_its_input_and_a_float32_for_each_token():
    found = {}
    for kernels in (("fast_rms_layernorm",), ()):
        with first_rank(small_job("full", kernels=kernels)) as rank:
            norm = rank.layers[0].input_layernorm
            found[kernels] = bytes_of(norm, activation(BATCH, TOKENS, WIDTH))
            assert (norm.weight.grad is None) == bool(kernels)  # the kernel has none for it
    held, most, backward = found["fast_rms_layernorm",]
    assert held == most == 2 * ROWS * WIDTH + 4 * ROWS
    assert backward == 0  # in place
    assert all(plain > fast for plain, fast in zip(found[()], found["fast_rms_layernorm",], strict=True))
    # Plain ops go through float32.
    assert found[()][1] >= held + 2 * 4 * ROWS * WIDTH


def test_rotary_embeddings_are_made_in_place():
    def rotate(query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = torch.empty(BATCH, TOKENS, 32, dtype=torch.bfloat16)
        return modeling_mistral.apply_rotary_pos_emb(query.transpose(1, 2), key.transpose(1, 2), angles, angles)

    found = {}
    for kernels in (("fast_rope_embeddings",), ()):
        with first_rank(small_job("lora", kernels=kernels)):
            found[kernels] = bytes_of(rotate, activation(BATCH, TOKENS, 4, 32), activation(BATCH, TOKENS, 2, 32))
    angles = 2 * ROWS * 32
    assert found["fast_rope_embeddings",] == (0, angles, 0)
    held, most, backward = found[()]
    assert held >= 2 * ROWS * (4 + 2) * 32 and most > held and backward > 0


@pytest.mark.parametrize(("vocabulary", "parts"), [(32_000, 1), (128_256, 2)])
def test_cross_entropy_keeps_no_probabilities_and_writes_its_gradient_into_the_logits(vocabulary, parts):
    found = {}
    for kernels in (("fast_loss",), ()):
        with first_rank(small_job("lora", kernels=kernels)):
            logits = activation(TOKENS, vocabulary, dtype=torch.float32)
            found[kernels] = bytes_of(F.cross_entropy, logits, torch.zeros(TOKENS, dtype=torch.long))
    held, most, backward = found["fast_loss",]
    losses, logsumexps = 4 * TOKENS, 4 * parts * TOKENS
    assert most == losses + logsumexps + 4  # and the sum
    assert held == logsumexps + 4
    assert backward == 0
    assert min(found[()]) >= 4 * TOKENS * vocabulary


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that an op returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        found = [leaf.numel() for leaf in tree_iter(out) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *found])
        return out


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_chunked_loss_never_holds_all_logits(method):
    vocabulary = 32 * WIDTH
    largest, peaks = {}, {}
    for loss in ("chunked", "full"):
        job = small_job(method, vocabulary=vocabulary, loss=loss)
        with first_rank(job) as rank, Largest() as seen:
            rank.micro_batch(BATCH, TOKENS, reduce=False)
        largest[loss] = seen.elements
        peaks[loss] = rank_trace.run(job, layers=2, tokens=TOKENS).peak_bytes
    assert largest["full"] >= ROWS * vocabulary
    assert largest["chunked"] < ROWS * vocabulary / 4
    assert peaks["chunked"] < peaks["full"] - 8 * ROWS * vocabulary


@pytest.mark.parametrize("trainable", [True, False])
def test_a_chunked_loss_holds_gradients_and_two_chunks_of_logits(trainable):
    rows, vocabulary = 4096, 32 * WIDTH
    with FakeTensorMode():
        hidden, weight = activation(rows, WIDTH), activation(vocabulary, WIDTH)
        weight = weight if trainable else weight.detach()
        labels = torch.zeros(rows, dtype=torch.long)
        with recorded(-1, hidden, weight, labels) as recorder:
            loss = triton_kernels._FusedLinearCrossEntropy.apply(hidden, weight, labels)
            held = hidden.nbytes + (weight.nbytes if trainable else 0)  # the gradients
            assert recorder.live == held + loss.nbytes
            chunk = rows // 32 * vocabulary  # elements
            # Float32 and bfloat16 logits of a chunk, and the gradient of the one before; a float32 loss per token.
            assert peak(recorder) == held + 4 * rows + (4 + 2 + 2) * chunk
            recorder.changes.clear()
            loss.backward()
            assert peak(recorder) <= held + 8


FUSED = {
    "quantization": "nf4", "mixed_precision": "bf16", "adapter_dtype": "float32", "lora_r": 16, "lora_dropout": 0.1,
    "lora_targets": ["q_proj", "k_proj", "v_proj", "o_proj"],
}  # fmt: skip


def _projections(attention: Any) -> dict[str, Callable[..., Any]]:
    @torch.autocast("cuda", torch.bfloat16)
    def qkv(hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return attention.q_proj(hidden), attention.k_proj(hidden), attention.v_proj(hidden)

    @torch.autocast("cuda", torch.bfloat16)
    def o(hidden: torch.Tensor) -> torch.Tensor:
        return attention.o_proj(hidden)

    return {"qkv": qkv, "o": o}


def test_fused_lora_keeps_what_dropout_leaves_of_its_input_and_no_mask():
    held = {}
    for kernels in (("fused_lora",), ()):
        with first_rank(small_job("qlora", kernels=kernels, **FUSED)) as rank:
            for name, project in _projections(rank.layers[0].self_attn).items():
                held[name, kernels], *_ = bytes_of(project, activation(BATCH, TOKENS, WIDTH))
    hidden = output = 2 * ROWS * WIDTH
    assert held["qkv", ("fused_lora",)] == 2 * output + 3 * hidden  # k and v have half the heads of q
    assert held["o", ("fused_lora",)] == output + hidden
    mask_and_product_of_rank_16 = ROWS * (WIDTH + 2 * 16)
    assert held["qkv", ()] - held["qkv", ("fused_lora",)] >= 3 * mask_and_product_of_rank_16
    assert held["o", ()] - held["o", ("fused_lora",)] >= mask_and_product_of_rank_16


@pytest.mark.parametrize(("name", "in_place"), [("qkv", True), ("o", False)])
def test_fused_lora_writes_the_gradient_of_q_k_and_v_into_their_input(name, in_place):
    with first_rank(small_job("qlora", kernels=["fused_lora"], **FUSED)) as rank:
        hidden = activation(BATCH, TOKENS, WIDTH)
        out = _projections(rank.layers[0].self_attn)[name](hidden)
        outs = out if isinstance(out, tuple) else (out,)
        adapters = [p for p in rank.layers[0].self_attn.parameters() if p.requires_grad]
        gradient, *of_adapters = torch.autograd.grad(
            outs, [hidden, *adapters], [torch.empty_like(t) for t in outs], allow_unused=True
        )
        assert (gradient.untyped_storage() is hidden.untyped_storage()) == in_place
        got = [g for g in of_adapters if g is not None]
        assert len(got) == 2 * len(outs)
        assert {g.shape for g in got} <= {p.shape for p in adapters}
