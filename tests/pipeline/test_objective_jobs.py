"""Objectives as whole jobs: which are compared, and what their traces under TRL's losses need."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from autoconf.jobs.stack import Stack
from autoconf.memory.model import gpu_memory
from autoconf.memory.store import ModelsTable
from autoconf.memory.units import GIB
from autoconf.pipeline.catalog import architectures
from autoconf.pipeline.tracing.first_rank import first_rank
from autoconf.pipeline.tracing.model_setup import TrainingSetup, build_model
from autoconf.pipeline.validation import objective_jobs
from autoconf.pipeline.validation.objective_rank import AllCount
from autoconf.predictor.registry import MODELS


def test_composed_peaks_are_those_of_the_table_and_of_whole_jobs():
    table, figures = pd.read_csv(objective_jobs.OUTPUT), ModelsTable.read(MODELS / "3.0.0")
    jobs = [*objective_jobs.jobs()]
    assert table["model"].tolist() == [job.architecture.name for job, _ in jobs]
    for row, (job, tokens) in zip(table.itertuples(), jobs, strict=True):
        memory = gpu_memory(figures, row.model, job.method, job.stack, several=job.gpus > 1)
        composed = float(memory.peak_bytes(np.array([job.gpus]), np.array([tokens]))[0]) / GIB
        assert composed == pytest.approx(row.composed_gib, abs=2e-3)
        assert row.whole_gib * (1 - objective_jobs.BELOW_PERCENT / 100) <= composed


def test_the_compared_jobs_are_of_each_objective_and_method_with_and_without_checkpoints():
    jobs = [job for job, _ in objective_jobs.jobs()]
    found = {(job.stack.objective, job.method, job.stack.gradient_checkpointing != "none") for job in jobs}
    assert len(found) == len(jobs) == 24
    assert {job.gpus for job in jobs} == {1, 8} and len({job.architecture.name for job in jobs}) == 4


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_reward_model_gives_one_score_and_trains_it(method):
    model = build_model(TrainingSetup(architectures()["pythia-160m"], method, Stack(objective="reward")), 2)
    scores = [p for name, p in model.named_parameters() if "score" in name and p.requires_grad]
    assert [tuple(p.shape) for p in scores] == [(1, 768)]


def test_a_loss_of_its_own_is_not_traced_as_that_of_supervised_fine_tuning():
    job = TrainingSetup(architectures()["pythia-160m"], "lora", Stack(objective="dpo"))
    with first_rank(job, 2) as rank, pytest.raises(ValueError, match="objective 'dpo' has a loss of its own"):
        rank.micro_batch(2, 64, reduce=False)


def test_all_samples_are_chosen_ones_and_all_tokens_count():
    with FakeTensorMode(), AllCount():
        labels, logits, mask = torch.ones(3, dtype=torch.bool), torch.empty(3, 5, 7), torch.empty(3, 5).bool()
        assert [len(labels.nonzero()), len((~labels).nonzero())] == [3, 0]
        assert logits[mask].shape == (15, 7)
        assert logits.sum().item() > 0 and mask.any()
