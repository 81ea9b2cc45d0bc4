"""Adapters on some of the layers against PEFT's ``layers_to_transform``."""

from __future__ import annotations

import pytest

from autoconf.jobs.stack import Stack
from autoconf.memory.store import ModelsTable
from autoconf.pipeline.catalog import architectures
from autoconf.pipeline.tracing.model_setup import TrainingSetup, build_model
from autoconf.pipeline.validation.lora_layers import jobs
from autoconf.pipeline.validation.whole_jobs import compared
from autoconf.predictor.registry import MODELS


@pytest.mark.parametrize("layers", [(11,), tuple(range(6, 12)), tuple(range(6)), (0, 3)])
@pytest.mark.parametrize("checkpointing", ["none", "non-reentrant"])
def test_composed_peaks_are_never_below_those_of_peft(layers, checkpointing):
    settings = {"lora_layers": layers, "gradient_checkpointing": checkpointing, "lora_r": 64}
    job = TrainingSetup(architectures()["pythia-160m"], "lora", Stack(**settings, lora_targets="all-linear"))
    found = compared(ModelsTable.read(MODELS / "3.0.0"), job, 4098)
    assert 0 <= found.difference_percent <= (15 if checkpointing == "none" else 0.5)


def test_peft_makes_adapters_on_these_layers_alone():
    job = TrainingSetup(architectures()["pythia-160m"], "lora", Stack(lora_layers=(1, 3), lora_targets="attention"))
    adapted = {name.split(".")[4] for name, p in build_model(job, 5).named_parameters() if p.requires_grad}
    assert adapted == {"1", "3"}


def test_the_compared_jobs_are_of_each_kind_of_sharding_with_and_without_checkpoints():
    found = {(job.gpus, job.stack.sharding, job.stack.gradient_checkpointing != "none") for job in jobs()}
    assert len(found) == 8 and all(job.stack.lora_layers for job in jobs())
