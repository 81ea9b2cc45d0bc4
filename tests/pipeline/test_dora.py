"""DoRA, whose memory is bounded, against PEFT's own."""

from __future__ import annotations

import pytest

from autoconf.jobs.stack import Stack
from autoconf.memory.store import ModelsTable
from autoconf.pipeline.catalog import architectures
from autoconf.pipeline.tracing.model_setup import TrainingSetup, build_model
from autoconf.pipeline.validation.composition import whole_run
from autoconf.pipeline.validation.whole_jobs import compared
from autoconf.predictor.registry import MODELS


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize("checkpointing", ["none", "non-reentrant"])
def test_composed_peaks_are_never_below_those_of_peft(method, checkpointing):
    settings = {"use_dora": True, "gradient_checkpointing": checkpointing, "lora_r": 16, "mixed_precision": "bf16"}
    stack = Stack(**settings, adapter_dtype="float32", quantization="nf4" if method == "qlora" else "none")
    job = TrainingSetup(architectures()["pythia-160m"], method, stack)
    found = compared(ModelsTable.read(MODELS / "3.0.0"), job, 4096)
    assert 0 <= found.difference_percent <= 25


def test_each_adapter_has_a_vector_of_its_outputs():
    job = TrainingSetup(architectures()["pythia-160m"], "qlora", Stack(use_dora=True, quantization="nf4"))
    shapes = {name: tuple(p.shape) for name, p in build_model(job, 2).named_parameters() if "magnitude" in name}
    assert set(shapes.values()) == {(3 * 768,)} and len(shapes) == 2


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_composed_peaks_are_never_below_those_of_peft_under_fsdp2(method):
    settings = {"use_dora": True, "gradient_checkpointing": "none", "lora_r": 16, "mixed_precision": "bf16"}
    stack = Stack(**settings, adapter_dtype="float32", quantization="nf4" if method == "qlora" else "none")
    found = compared(
        ModelsTable.read(MODELS / "3.0.0"), TrainingSetup(architectures()["pythia-160m"], method, stack, 8), 4096
    )
    assert 0 <= found.difference_percent <= 25


def test_peft_does_not_run_dora_on_what_fsdp1_holds_flat():
    job = TrainingSetup(architectures()["pythia-160m"], "lora", Stack(use_dora=True, sharding="fsdp1"), 8)
    with pytest.raises(IndexError, match="tuple index out of range"):
        whole_run(job, 74)
