"""The tracer on a small model, against bytes counted by hand."""

import pytest

pytest.importorskip("torch", reason="versions are traced with the extra [build], installed on Python 3.11")

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from autoconf.build import tracer
from autoconf.build.architectures import Architecture, architectures
from autoconf.memory import MemoryTable

HIDDEN, LAYERS, HEADS, INNER, VOCABULARY = 64, 5, 4, 128, 1000
HEAD_DIM = HIDDEN // HEADS
TINY = Architecture(
    name="tiny",
    family="llama",
    config={
        "model_type": "llama", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS, "intermediate_size": INNER, "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
    },
    parameters=0,
    lora_targets=["q_proj", "v_proj"],
    source="made for this test",
)  # fmt: skip
LAYER = 4 * HIDDEN**2 + 3 * HIDDEN * INNER + 2 * HIDDEN
ROOT = 2 * VOCABULARY * HIDDEN + HIDDEN


def peak(method, tokens, *, accumulating=True, gpus=1) -> float:
    table = MemoryTable([tracer.figures(TINY, method, accumulating=accumulating)])
    return float(table.peak_bytes(np.array([0]), np.array([gpus]), np.array([tokens]))[0])


def test_parameters_are_counted_by_kind():
    figures = tracer.figures(TINY, "full", accumulating=True)
    assert figures.layer_parameters == LAYER
    assert figures.root_parameters == ROOT
    assert figures.parameters == figures.trainable_parameters == LAYERS * LAYER + ROOT
    lora = tracer.figures(TINY, "lora", accumulating=True)
    # Rank 4: two adapters of q_proj and of v_proj in every layer, each 4 x hidden.
    assert lora.trainable_parameters == LAYERS * 2 * 2 * 4 * HIDDEN
    assert lora.parameters == figures.parameters + lora.trainable_parameters


def test_the_peak_at_the_logits_is_what_a_hand_counts():
    """log_softmax's backward: its output, its gradient and the result are alive, each in float32."""
    checkpoints = LAYERS * 2 * HIDDEN  # the input of every layer, bfloat16
    last_hidden_state = 2 * HIDDEN
    final_norm = 4 * HIDDEN + 2 * HIDDEN + 4  # the upcast input, the output, one float32 scale
    logits = 3 * 4 * VOCABULARY
    rotary = 2 * 2 * HEAD_DIM  # cosine and sine
    ids = 3 * 8  # tokens, labels and shifted labels, int64
    per_token = checkpoints + last_hidden_state + final_norm + logits + rotary + ids
    tokens = 5000
    gradients_and_weights = 2 * 2 * (LAYERS * LAYER + ROOT)
    optimizer = 4 * (LAYERS * LAYER + ROOT)
    # Within the rotary frequencies and a few scalars.
    assert peak("full", tokens) == pytest.approx(per_token * tokens + gradients_and_weights + optimizer, abs=128)


def test_logits_are_not_kept_across_backward():
    """Kept outputs would add the bfloat16 logits and their float32 copy: 6 bytes a token and vocabulary entry."""
    slope = peak("full", 8000) - peak("full", 7000)
    assert slope / 1000 < 12 * VOCABULARY + 2 * HIDDEN * (LAYERS + 8)


def test_a_whole_stack_has_the_peak_that_short_stacks_foretell():
    deep = TINY.model_copy(update={"config": {**TINY.config, "num_hidden_layers": 9}})
    for method in ("full", "lora"):
        for accumulating in (True, False):
            moments = np.array(tracer.trace(deep, method, accumulating=accumulating))
            for tokens in (17, 20_011):
                foretold = (moments[:, 0] + moments[:, 1] * tokens + moments[:, 2]).max()
                traced = tracer.peak_bytes(deep, method, tokens=tokens, accumulating=accumulating)
                assert foretold == pytest.approx(traced, rel=0.002)


def test_accumulation_keeps_whole_gradients_on_every_gpu():
    trainable = 2 * (LAYERS * LAYER + ROOT)
    # Many tokens, so that the peak is at the logits, before most gradients of the single micro-batch exist.
    with_accumulation, without = (peak("full", 9000, accumulating=a, gpus=8) for a in (True, False))
    assert with_accumulation - without == pytest.approx(trainable, rel=0.25)


def test_the_optimizer_step_holds_one_more_copy():
    """The closed form's step: weights, two states, gradients and temporaries of one more copy (AdamW, foreach)."""
    with FakeTensorMode():
        parameters = [torch.nn.Parameter(torch.empty(1000, 10, dtype=torch.bfloat16)) for _ in range(4)]
        optimizer = torch.optim.AdamW(parameters, foreach=True)
        for p in parameters:
            p.grad = torch.empty_like(p)
        optimizer.step()
        recorder = tracer._Recorder(tokens=-1)
        states = [s for state in optimizer.state.values() for s in state.values()]
        recorder.ignore([*parameters, *(p.grad for p in parameters), *states])
        with recorder:
            optimizer.step()
    copy = sum(p.nbytes for p in parameters)
    live = np.cumsum([nbytes for _, nbytes, _ in recorder.events])
    assert live.max() == pytest.approx(copy, rel=0.01)


class _Squares(torch.nn.Module):
    def forward(self, tokens):
        return tokens @ tokens.T


def test_a_tensor_of_tokens_by_tokens_is_refused():
    with FakeTensorMode():
        hidden = torch.empty(tracer.TOKENS[0], 8)
        with pytest.raises(tracer.TraceError, match="tokens x tokens"), tracer._Recorder(tracer.TOKENS[0]):
            _Squares()(hidden)


@pytest.mark.parametrize("name", ["granite-20b-v2", "mixtral-8x7b-instruct-v0.1"])
def test_multi_query_and_experts_trace_without_squares(name):
    """``trace`` raises if a storage of tokens x tokens is ever held, or if a peak were not affine in tokens."""
    assert tracer.trace(architectures()[name], "lora", accumulating=True)
