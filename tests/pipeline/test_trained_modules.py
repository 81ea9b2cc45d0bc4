"""Embeddings and heads that are trained beside adapters, against PEFT's own."""

from __future__ import annotations

import pandas as pd
import pytest

from autoconf.jobs.stack import Stack
from autoconf.memory.store import ModelsTable
from autoconf.pipeline.catalog import architectures
from autoconf.pipeline.tracing.model_setup import TrainingSetup, build_model
from autoconf.pipeline.validation import trained_zero
from autoconf.pipeline.validation.trained_modules import jobs
from autoconf.pipeline.validation.whole_jobs import compared
from autoconf.pipeline.validation.zero_truth import Profiles
from autoconf.predictor.registry import MODELS


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("qwen2.5-0.5b", ["embed_tokens", "lm_head"]), ("pythia-160m", ["embed_in", "lm_head"]),
        ("opt-125m", ["embed_tokens", "lm_head"]),
    ],
)  # fmt: skip
def test_each_module_is_a_copy_of_its_own(model, names):
    job = TrainingSetup(architectures()[model], "lora", Stack(trained_modules="embeddings_and_head"))
    parameters = {name: p for name, p in build_model(job, 2).named_parameters() if "modules_to_save" in name}
    assert [any(f".{name}." in parameter for parameter in parameters) for name in names] == [True, True]
    assert len(parameters) == 2 and all(p.requires_grad for p in parameters.values())


def test_composed_peaks_are_those_of_peft():
    job = TrainingSetup(
        architectures()["pythia-160m"],
        "lora",
        Stack(trained_modules="embeddings_and_head", gradient_accumulation=False),
    )
    assert -0.01 <= compared(ModelsTable.read(MODELS / "3.0.0"), job, 4096).difference_percent <= 0.2


def test_the_jobs_that_are_compared_have_every_value_in_every_place():
    drawn = list(jobs())
    assert {job.method for job in drawn} == {"lora", "qlora"}
    for value in ("embeddings", "head", "embeddings_and_head"):
        of_value = [job for job in drawn if job.stack.trained_modules == value]
        assert {job.gpus > 1 and job.stack.sharding for job in of_value} == {False, "ddp", "fsdp1", "fsdp2"}


def test_composed_figures_under_deepspeed_are_those_of_the_table():
    table, profiles = pd.read_csv(trained_zero.OUTPUT), Profiles()
    checks = [*trained_zero.checks()]
    assert table["sharding"].tolist() == [check.stack.sharding for check in checks]
    assert table["trained_modules"].tolist() == [check.stack.trained_modules for check in checks]
    assert (table["composed_kib"] >= table["measured_kib"]).all()
    for index in (3, 7, 11):  # each stage
        assert profiles.peak_bytes(checks[index]) / 1024 == pytest.approx(table["composed_kib"][index], rel=1e-3)
