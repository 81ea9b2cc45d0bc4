"""Adapters of modules that a job names, compared with PEFT's adapters on exactly these modules."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from autoconf.jobs.stack import Stack
from autoconf.memory.adapted import modules_of_released
from autoconf.memory.model import StackMemory, gpu_job
from autoconf.memory.units import Unsupported
from autoconf.predictor import registry

VERSION = "3.0.0"
LISTS = [
    ("mistral-7b-v0.1", ("q_proj",)),
    ("qwen2.5-7b", ("q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")),
    ("granite-20b-v2", ("c_proj",)),  # of attention and of the MLP
    ("granite-20b-v2", ("attn.c_proj", "c_fc")),
    ("pythia-160m", ("query_key_value", "dense_h_to_4h")),
    ("phi-3-mini", ("qkv_proj", "down_proj")),
    ("opt-125m", ("fc1", "out_proj")),
    ("granite-4.0-h-1b", ("in_proj", "q_proj")),  # layers of two kinds
    ("mixtral-8x7b-instruct-v0.1", ("k_proj", "o_proj")),
]


@pytest.fixture(scope="module")
def memory() -> StackMemory:
    return StackMemory(registry.load(VERSION).memory.table)


def _named(model, names):
    modules = modules_of_released(model)
    assert modules is not None
    return modules.named(model, names)


@pytest.mark.parametrize(("model", "names"), LISTS)
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_adapters_of_named_modules_are_those_that_peft_makes(memory, method, model, names):
    for package in ("torch", "transformers", "peft", "bitsandbytes"):
        pytest.importorskip(package, reason="PEFT is in the extra [build]")
    from autoconf.pipeline.catalog import architectures
    from autoconf.pipeline.tracing.model_setup import TrainingSetup, build_model, decoder_layers

    quantization = "nf4" if method == "qlora" else "none"
    stack = Stack(lora_targets=names, lora_r=3, quantization=quantization)
    built = build_model(TrainingSetup(architectures()[model], method, stack))
    named = _named(model, names)
    found = named.trainable(memory.table.trainable(model, method, named.group))
    trainable = [p for p in built.parameters() if p.requires_grad]
    assert 3 * found.units.trainable == sum(p.numel() for p in trainable)
    assert sorted(tuple(p.shape) for p in trainable) == sorted(
        tuple(3 if side == 1 else side for side in shape.dimensions)
        for shape, count in found.shapes
        for _ in range(count)
    )
    largest = max(decoder_layers(built), key=lambda layer: sum(p.numel() * p.itemsize for p in layer.parameters()))
    assert 3 * found.units.layer_trainable == sum(p.numel() for p in largest.parameters() if p.requires_grad)


@pytest.mark.parametrize(("model", "names"), [LISTS[4], LISTS[6], ("smollm2-135m", ("o_proj", "gate_proj"))])
@pytest.mark.parametrize(("checkpointing", "most"), [("non-reentrant", 1.01), ("none", 1.5)])
def test_layers_with_named_adapters_hold_at_most_what_is_counted(memory, model, names, checkpointing, most):
    for package in ("torch", "transformers", "peft", "bitsandbytes"):
        pytest.importorskip(package, reason="models are traced with the extra [build]")
    from autoconf.pipeline.validation.named_modules import peaks

    stack = Stack(lora_targets=names, lora_r=8, gradient_checkpointing=checkpointing)
    composed, traced = peaks(memory.table, model, stack, 4_096)
    assert traced <= composed <= most * traced


def test_a_list_of_all_modules_of_a_group_is_that_group(memory):
    for model in memory.table.models:
        modules = memory.table.modules(model)
        for group, paths in modules.groups.items():
            if set(paths) <= set(modules.paths):
                of_list, of_group = (
                    gpu_job(memory.table, model, "lora", Stack(lora_targets=targets), several=False).resident
                    for targets in (paths, group)
                )
                assert of_list == of_group, (model, group)


def test_every_released_model_has_nested_groups(memory):
    for model in memory.table.models:
        modules = memory.table.modules(model)
        ascending = sorted(map(set, modules.groups.values()), key=len)
        assert all(few <= many for few, many in itertools.pairwise(ascending)), model


@pytest.mark.parametrize("sharding", ["ddp", "fsdp1", "fsdp2", "zero2"])
def test_more_modules_never_need_less(memory, sharding):
    """ZeRO-3 is counted with the inputs of all frozen layers, unless all have adapters."""
    chance = random.Random(sharding)
    for model in chance.sample(memory.table.models, 25):
        paths = [*memory.table.modules(model).paths]
        chance.shuffle(paths)
        for checkpointing in ("none", "non-reentrant"):
            settings = {"sharding": sharding, "mixed_precision": "bf16", "gradient_checkpointing": checkpointing}
            rows = []
            for targets in (*(tuple(paths[:count]) for count in range(1, len(paths) + 1)), "all-linear"):
                try:
                    rows.append(memory.row(model, "lora", Stack(lora_targets=targets, **settings)))
                except Unsupported:  # adapters of experts do not run under FSDP1
                    assert targets == "all-linear" and sharding == "fsdp1"
            for gpus, tokens in ((1, 512), (1, 65_536), (4, 512), (4, 65_536)):
                peaks = memory.peak_bytes(np.array(rows), np.full(len(rows), gpus), np.full(len(rows), tokens))
                assert np.all(np.diff(peaks) >= -1e-6 * peaks[1:]), (model, settings, gpus, tokens)


def test_an_unknown_module_is_named_with_those_of_the_model():
    with pytest.raises(
        Unsupported, match=r"lora_targets 'lm_head,q_prj' of mistral-7b-v0.1 .* are q_proj, k_proj, v_p"
    ):
        _named("mistral-7b-v0.1", ["lm_head", "q_prj", "v_proj"])


def test_a_part_of_a_name_is_no_name():
    for name in ("proj", "attn.q", "elf_attn.q_proj", "q_proj.weight"):
        with pytest.raises(Unsupported):
            _named("mistral-7b-v0.1", [name])
