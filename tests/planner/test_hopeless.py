"""What a long table leaves out never changes an answer."""

import numpy as np
import pandas as pd
import pytest

from autoconf import Workload, recommend
from autoconf.pipeline.release.random_jobs import random_jobs
from autoconf.planner import alternatives, search
from autoconf.predictor.registry import DEFAULT, load


@pytest.fixture(scope="module")
def jobs():
    drawn = random_jobs(load(DEFAULT), np.random.default_rng(8), 700, sizes=4).drop(columns=["number_gpus"])
    return drawn.assign(model_version=DEFAULT, gpus_per_worker=8)


def test_changes_that_are_left_out_and_layouts_between_the_ends_change_no_answer(jobs, monkeypatch):
    assert len(jobs) >= search._LONG
    kept = []
    possible = alternatives.possible

    def counted(predictor, columns, tried):
        found = possible(predictor, columns, tried)
        kept.append((len(tried), len(found)))
        return found

    monkeypatch.setattr(alternatives, "possible", counted)
    answers = recommend(jobs)
    (tried, left), *_ = kept
    assert 0 < left < 0.7 * tried  # many of them cannot help
    monkeypatch.setattr(alternatives, "possible", lambda predictor, columns, tried: tried)
    monkeypatch.setattr(search, "_LONG", len(jobs) + 1)
    assert recommend(jobs).equals(answers)
    assert answers["reason"].str.contains("optim=").any()


def test_fewer_micro_batches_are_suggested_where_their_images_take_the_memory():
    job = Workload(
        model_name="qwen2.5-vl-7b",
        method="lora",
        gpu_model="L40S",
        sharding="ddp",
        lora_targets="attention",
        tokens_per_sample=4000,
        image_tokens=3500,
        per_device_train_batch_size=2,
        max_gpus=1,
        gradient_accumulation_steps=256,
    )
    assert "gradient_accumulation_steps=1 would fit on 1 GPU" in recommend(job).reason


def test_tables_of_unknown_models_are_refused():
    job = {"model_name": "none", "method": "full", "gpu_model": "L40S", "tokens_per_sample": 8, "batch_size": 8}
    assert recommend(pd.DataFrame([job] * 3))["outcome"].tolist() == ["outside_domain"] * 3
