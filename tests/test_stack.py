"""Stacks as values, and the closed form over what is traced of them."""

from typing import get_args

import pytest

from autoconf.memory import RankFigures
from autoconf.stack import Optim, Shape, Stack, optimizer_bytes


def test_the_defaults_are_the_reference_workload():
    assert Stack().model_dump() == {
        "optim": "adamw_torch",
        "torch_dtype": "bfloat16",
        "mixed_precision": "no",
        "gradient_checkpointing": "non-reentrant",
        "loss": "full",
        "sharding": "fsdp2",
        "gradient_accumulation": True,
        "adapter_dtype": "bfloat16",
        "lora_r": 4,
        "lora_dropout": 0.0,
        "lora_targets": "default",
        "quantization": "none",
        "upcast_unquantized": False,
        "kernels": (),
        "shard_adapters": True,
    }


def test_every_setting_says_what_it_is():
    undescribed = [name for name, field in Stack.model_fields.items() if not field.description]
    assert not undescribed


@pytest.mark.parametrize(
    ("settings", "quoted"),
    [
        ({"quantization": "nf4", "torch_dtype": "float32"}, ["quantization 'nf4'", "torch_dtype 'float32'"]),
        ({"upcast_unquantized": True}, ["upcast_unquantized True", "quantization 'none'"]),
        ({"loss": "chunked", "kernels": ["fast_loss"]}, ["loss 'chunked'", "kernels ('fast_loss',)"]),
        ({"kernels": ["fused_lora"]}, ["kernels ('fused_lora',)", "quantization 'none'"]),
        ({"shard_adapters": False, "sharding": "fsdp2"}, ["shard_adapters False", "sharding 'fsdp2'"]),
    ],
)
def test_settings_that_exclude_each_other_are_named_with_their_values(settings, quoted):
    with pytest.raises(ValueError, match="exclude each other") as raised:
        Stack(**settings)
    for text in quoted:
        assert text in str(raised.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"quantization": "nf4", "torch_dtype": "bfloat16"},
        {"quantization": "nf4", "upcast_unquantized": True},
        {"loss": "chunked", "kernels": ["fast_rms_layernorm"]},
        {"quantization": "nf4", "kernels": ["fused_lora"]},
        {"shard_adapters": False, "sharding": "fsdp1"},
    ],
)
def test_each_setting_of_an_exclusion_is_allowed_without_the_other(settings):
    assert Stack(**settings)


@pytest.mark.parametrize(
    "settings",
    [{"optim": "adamw"}, {"lora_r": 0}, {"lora_dropout": 1.0}, {"kernels": ["fast"]}, {"sharding": "zero3"}],
)
def test_a_value_that_is_not_allowed_is_refused_by_the_name_of_its_setting(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Stack(**settings)


def test_an_unknown_setting_is_refused():
    with pytest.raises(ValueError, match="optimizer"):
        Stack(optimizer="sgd")


def test_a_stack_cannot_be_changed():
    stack = Stack()
    with pytest.raises(ValueError, match="frozen"):
        stack.optim = "sgd"


@pytest.mark.parametrize("optim", get_args(Optim))
def test_every_optimizer_has_its_bytes(optim):
    states, step = optimizer_bytes(optim, [Shape((1000, 500), 2), Shape((100,), 2)])
    assert 0 <= states <= 8 * 500_100  # AdamW with float32 states holds most
    assert 0 <= step <= 20 * 500_000


FIGURES = RankFigures(
    moments=((1000, 0, 0), (100, 8, 400), (0, 10, 0)), end=(50, 1, 400), states=300, step=900, shards_states=True
)


@pytest.mark.parametrize(
    ("tokens", "gpus", "peak"),
    [
        (10, 1, 300 + 50 + 10 + 400 + 900),  # the optimizer steps
        (10, 100, 3 + 1000),  # what neither tokens nor GPUs change
        (100, 2, 150 + 100 + 800 + 200),
        (1000, 4, 75 + 10_000),
    ],
)
def test_the_peak_is_the_highest_moment(tokens, gpus, peak):
    assert FIGURES.peak_bytes(tokens, gpus) == peak


def test_states_that_are_not_sharded_are_whole_on_every_gpu():
    whole = RankFigures(FIGURES.moments, FIGURES.end, FIGURES.states, FIGURES.step, shards_states=False)
    assert whole.peak_bytes(10, 4) == 300 + 50 + 10 + 100 + 900
    assert FIGURES.peak_bytes(10, 4) == 75 + 1000
