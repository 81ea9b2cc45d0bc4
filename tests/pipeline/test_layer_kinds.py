"""Short stacks of decoder layers, and the check that layers of one kind hold the same memory."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

for package in ("torch", "transformers", "peft", "bitsandbytes"):
    pytest.importorskip(package, reason="versions are traced with the extra [build], installed on Python 3.11")

from autoconf.jobs.stack import Stack
from autoconf.pipeline.catalog import architectures
from autoconf.pipeline.tracing import model_setup
from autoconf.pipeline.tracing.model_setup import TrainingSetup
from autoconf.pipeline.validation import rank_trace

QLORA = {"quantization": "nf4", "mixed_precision": "bf16"}
MIXED = [name for name, architecture in architectures().items() if set(architecture.kinds) != {"layer"}]
# The other models of which transformers says that their layers differ: some attend to a window only. Of Gemma 3 every
# sixth does not.
WINDOWED = ["gemma-2-2b", "gemma-3-1b", "gpt-oss-20b"]


def job(name: str, method: model_setup.Method = "full", gpus: int = 1, **settings: Any) -> TrainingSetup:
    return TrainingSetup(architectures()[name], method, Stack(**settings), gpus)


def kinds(name: str) -> list[str]:
    return list(dict.fromkeys(architectures()[name].kinds))


def profiles(trace: rank_trace.LiveBytes) -> dict[int, list[list[tuple[str, float]]]]:
    """The ops of each layer's passes, and the memory alive beyond the bytes at their start."""
    found: dict[int, list[list[tuple[str, float]]]] = {}
    for segment, moments in itertools.groupby(range(len(trace.ops)), key=lambda moment: int(trace.segments[moment])):
        indices = np.array(list(moments))
        held = trace.live_bytes[indices] - trace.live_bytes[indices[0]]
        found.setdefault(segment, []).append([(trace.ops[i], bytes_) for i, bytes_ in zip(indices, held, strict=True)])
    return found


def inner_profiles(name: str, stack: list[str], first: int, **settings: Any) -> dict[str, list[Any]]:
    """Profiles of a stack's layers from one on, by their kind."""
    found = profiles(rank_trace.run(job(name, **settings), layers=stack, tokens=2039))
    return {kind: [found[i] for i in range(first, len(stack)) if stack[i] == kind] for kind in stack}


WITH_AND_WITHOUT_CHECKPOINTS = pytest.mark.parametrize("checkpointing", ["non-reentrant", "none"])


# The first layer lets go, in the end, of positions that all layers share; that of tokens x tokens the trace refuses.
@WITH_AND_WITHOUT_CHECKPOINTS
@pytest.mark.parametrize("name", MIXED)
def test_layers_of_one_kind_hold_the_same_and_those_of_two_do_not(name, checkpointing):
    stack = [kind for kind in kinds(name) for _ in range(3)]
    found = inner_profiles(name, stack, first=1, gradient_checkpointing=checkpointing)
    for kind, (one, *others) in found.items():
        assert others and all(other == one for other in others), kind
    assert all(one[0] != other[0] for one, other in itertools.combinations(found.values(), 2))


@WITH_AND_WITHOUT_CHECKPOINTS
@pytest.mark.parametrize("name", WINDOWED)
def test_layers_with_windowed_attention_hold_the_same_memory_as_others(name, checkpointing):
    found = inner_profiles(name, ["layer"] * 12, first=6, gradient_checkpointing=checkpointing)
    assert all(profile == found["layer"][0] for profile in found["layer"])


@pytest.mark.parametrize(
    ("method", "gpus", "settings"),
    [
        ("lora", 1, {"lora_targets": "all-linear"}),
        ("qlora", 1, QLORA),
        ("full", 2, {"sharding": "fsdp1"}),
        ("qlora", 2, {"sharding": "fsdp1", **QLORA}),
        ("lora", 2, {"sharding": "fsdp2"}),
    ],
)
@pytest.mark.parametrize("name", ["granite-4.0-h-tiny", "deepseek-v2-lite", "smollm3-3b"])
def test_mixed_stacks_are_traced_with_every_method_and_sharding(name, method, gpus, settings):
    stack = kinds(name)
    trace = rank_trace.run(job(name, method, gpus, **settings), layers=stack, tokens=2039)
    assert {rank_trace.HEAD, *range(len(stack))} <= set(trace.segments)


@pytest.mark.parametrize("name", MIXED)
def test_a_stack_of_a_models_own_kinds_is_that_model(name):
    architecture = architectures()[name]
    assert architecture.shortened(architecture.kinds).items() >= architecture.config.items()
    own, rebuilt = (model_setup.build_model(job(name), layers) for layers in (None, architecture.kinds))
    assert [(n, p.shape) for n, p in own.named_parameters()] == [(n, p.shape) for n, p in rebuilt.named_parameters()]
    assert sum(p.numel() for p in own.parameters()) == architecture.parameters


def test_a_number_of_layers_takes_the_first_and_begins_again():
    def types(name: str, layers: int) -> list[str]:
        model: Any = model_setup.build_model(job(name), layers)
        return model.config.layer_types

    assert types("granite-4.0-h-1b", 6) == 5 * ["linear_attention"] + ["full_attention"]
    assert len(types("granite-4.0-h-1b", 41)) == 41
    assert len(model_setup.decoder_layers(model_setup.build_model(job("llama-7b"), 40))) == 40


def test_a_stack_that_a_config_cannot_say_is_refused():
    deepseek, hybrid, llama = (architectures()[name] for name in ("deepseek-v2-lite", "granite-4.0-h-1b", "llama-7b"))
    with pytest.raises(ValueError, match=r"kinds: the config of deepseek-v2-lite cannot express \['moe', 'dense'\]"):
        deepseek.shortened(["moe", "dense"])
    with pytest.raises(
        ValueError, match=r"are not layers of granite-4.0-h-1b, whose layers are of kind attention, mamba"
    ):
        hybrid.shortened(["mamba", "moe"])
    with pytest.raises(ValueError, match=r"kinds: \[\] are not layers of llama-7b, whose layers are of kind layer"):
        llama.shortened([])


def test_kinds_of_layers_are_those_of_the_configs():
    assert architectures()["llama-7b"].kinds == ("layer",) * 32
    assert architectures()["granite-4.0-h-1b"].kinds.count("attention") == 4
    assert architectures()["deepseek-v2-lite"].kinds == ("dense", *["moe"] * 26)
    assert architectures()["smollm3-3b"].kinds == ("rope", "rope", "rope", "nope") * 9
