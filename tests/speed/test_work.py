"""The work of a step in closed form, against PyTorch's FLOP counter and by what settings change."""

import itertools

import pytest

from autoconf.jobs.stack import Stack
from autoconf.pipeline.catalog import architectures
from autoconf.speed.counts import CLOSED_FORM, counts_of
from autoconf.speed.shapes import known_shapes, shapes_of
from autoconf.speed.work import SHARDED_WEIGHTS, Layout, dense_launches, traffic_of, trained, work_of

LLAMA = known_shapes("llama-7b")
LAYOUT = Layout(2, 1024, 1, steps=4)


def work(method="full", layout=LAYOUT, shapes=LLAMA, **settings):
    return work_of(shapes, method, Stack(**settings), layout)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("model_type", "more"),
    [
        ("llama", {"num_key_value_heads": 2, "intermediate_size": 688}),
        ("qwen3", {"num_key_value_heads": 4, "intermediate_size": 688, "head_dim": 64}),
        ("gpt_neox", {"intermediate_size": 1024}),
    ],
)
def test_flops_are_those_that_pytorch_counts(model_type, more):
    torch = pytest.importorskip("torch")
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {
        "vocab_size": 1000, "hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 8, **more,
        "tie_word_embeddings": False,
    }  # fmt: skip
    config = AutoConfig.for_model(model_type, **settings, attn_implementation="eager", use_cache=False)
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        model = AutoModelForCausalLM.from_config(config)
        tokens = torch.zeros(2, 128, dtype=torch.long)
        model(input_ids=tokens, labels=tokens).loss.backward()
    shapes = shapes_of({"model_type": model_type, **settings})
    counted = work_of(shapes, "full", Stack(gradient_checkpointing="none"), Layout(2, 128, 1))
    # Eager attention computes all scores, not only the causal half, and does not compute them again.
    scores = 2 * counted.attention_flops / 3.5 * 3
    assert counter.get_total_flops() == pytest.approx(counted.flops + scores, rel=0.01)


def test_checkpoints_compute_the_layers_again():
    without, with_checkpoints = work(gradient_checkpointing="none"), work()
    layers = 2 * LAYOUT.tokens * LLAMA.layers * LLAMA.layer_active
    assert with_checkpoints.flops - without.flops == pytest.approx(layers)
    assert with_checkpoints.model_flops == without.model_flops


def test_adapters_have_no_gradients_of_frozen_weights():
    full, lora = work(), work("lora")
    products = 2 * LAYOUT.tokens * (LLAMA.layers * LLAMA.layer_active + LLAMA.head)
    assert full.flops - lora.flops == pytest.approx(products)
    assert trained(LLAMA, False, Stack()) < trained(LLAMA, True, Stack()) / 1000
    assert lora.launches > full.launches


def test_full_shard_gathers_the_weights_twice_and_ddp_sends_only_gradients():
    several = Layout(2, 1024, 4, steps=1)
    weights = 2 * (LLAMA.layers * LLAMA.layer_stored + LLAMA.head)
    sharded, replicated = work(layout=several), work(layout=several, sharding="ddp")
    assert sharded.sent == pytest.approx(3 / 4 * 3 * weights)
    assert replicated.sent == pytest.approx(3 / 4 * 2 * weights)
    assert work().sent == work().messages == 0


def test_the_update_is_divided_over_shards_and_micro_batches():
    one, four = (work(layout=Layout(2, 1024, 4, steps=steps)).bytes for steps in (1, 4))
    update = 4 / 3 * (one - four)
    assert update == pytest.approx(trained(LLAMA, True, Stack()) * 2 * 23 / 4)


def test_experts_are_launched_one_after_the_other():
    mixtral = known_shapes("mixtral-8x7b-instruct-v0.1")
    dense = known_shapes("mistral-7b-v0.1")
    assert work(shapes=mixtral).launches > 2 * work(shapes=dense).launches


def offloaded(**settings):
    return work(layout=Layout(2, 1024, 4, steps=2), sharding="zero3", **settings)


def test_offload_moves_weights_gradients_and_the_step_to_the_host():
    kept, optimizer, weights, both = (
        offloaded(offload=what) for what in ("none", "optimizer", "parameters", "optimizer_and_parameters")
    )
    trainable = 2 * trained(LLAMA, True, Stack())
    assert kept.offloaded == kept.host_bytes == 0
    assert optimizer.offloaded == pytest.approx(trainable * (1 + 1 / 2) / 4)
    assert optimizer.host_bytes == pytest.approx(kept.bytes - optimizer.bytes)
    assert weights.host_bytes == 0 and weights.bytes == kept.bytes
    stored = 2 * (LLAMA.layers * LLAMA.layer_stored + 2 * LLAMA.head)
    assert weights.offloaded == pytest.approx(2 * stored / 4)
    assert both.offloaded == pytest.approx(weights.offloaded + trainable / 4)
    one = work(layout=Layout(2, 1024, 1), sharding="fsdp1", offload="optimizer_and_parameters")
    assert one.offloaded == one.host_bytes == 0  # FSDP1 shards nothing on one GPU


def test_the_reference_model_is_one_more_forward_pass():
    several = Layout(2, 1024, 4)
    kept = {"layout": several, "gradient_checkpointing": "none"}
    plain, dpo, kto = (work(objective=objective, **kept) for objective in ("sft", "dpo", "kto"))
    forward = 2 * LAYOUT.tokens * (LLAMA.layers * LLAMA.layer_active + LLAMA.head)
    assert dpo.flops - plain.flops == dpo.model_flops - plain.model_flops - (
        dpo.attention_flops - plain.attention_flops
    )
    assert dpo.flops - plain.flops == pytest.approx(forward)
    assert kto.flops - plain.flops == pytest.approx(3 * forward)
    weights = 2 * (LLAMA.layers * LLAMA.layer_stored + LLAMA.head)
    assert dpo.sent - plain.sent == pytest.approx(3 / 4 * weights)
    assert plain.bytes < dpo.bytes < kto.bytes and plain.launches < dpo.launches < kto.launches


def test_a_reward_model_has_one_score_instead_of_logits():
    plain, reward = work(), work(objective="reward")
    assert plain.flops - reward.flops == pytest.approx(3 * 2 * LAYOUT.tokens * LLAMA.hidden * (LLAMA.vocabulary - 1))
    assert reward.bytes < plain.bytes


@pytest.mark.parametrize(
    ("sharding", "sync", "times"),
    [
        ("fsdp2", "last", 1 / 4),
        ("fsdp2", "every", 1),
        ("zero1", "last", 1 / 4),
        ("zero2", "last", 1),
        ("zero3", "last", 1),
    ],
)
def test_gradients_are_reduced_as_often_as_the_stack_says(sharding, sync, times):
    layout = {steps: Layout(2, 1024, 4, steps=steps) for steps in (1, 4)}
    one, four = (work(layout=layout[steps], sharding=sharding, gradient_sync=sync).sent for steps in (1, 4))
    gradients = 3 / 4 * 2 * trained(LLAMA, True, Stack()) * (1 if sharding in SHARDED_WEIGHTS else 2)
    assert one - four == pytest.approx(gradients * (1 - times), abs=1)


def test_counts_multiply_the_closed_form():
    closed = work_of(LLAMA, "full", Stack(), LAYOUT, CLOSED_FORM)
    twice = work_of(LLAMA, "full", Stack(), LAYOUT, CLOSED_FORM._replace(operations=2.0, weights=2.0))
    assert twice.flops == closed.flops
    assert twice.launches - closed.launches == pytest.approx(dense_launches(LLAMA, True, Stack()))
    assert twice.bytes - closed.bytes == pytest.approx(traffic_of(LLAMA, True, Stack(), LAYOUT).weights)


def test_every_model_and_way_of_training_has_counts_that_only_add_work():
    kernels = [(), ("fast_rms_layernorm",), ("fused_lora",), ("fast_rms_layernorm", "fused_lora")]
    for model, quantization, checkpoints, fused in itertools.product(
        architectures(), ("none", "nf4", "int8"), ("none", "reentrant"), kernels
    ):
        if "fused_lora" in fused and quantization == "none":
            continue
        stack = Stack(quantization=quantization, gradient_checkpointing=checkpoints, kernels=fused, sharding="ddp")
        for method in ("full", "lora") if quantization == "none" else ("qlora",):
            found = counts_of(known_shapes(model).family, method, stack)
            assert 0 < found.operations < 20 and 0 <= found.outside < 200, model
            assert all(0 <= figure < 20 for figure in found[2:]), model
