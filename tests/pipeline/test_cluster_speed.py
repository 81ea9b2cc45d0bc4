"""Learning the speed of a cluster from few and from wrong rows."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest

from autoconf import Workload, throughput
from autoconf.errors import BadInput
from autoconf.jobs.tables import check_jobs
from autoconf.pipeline.calibration.cluster_speed import learn_speed
from autoconf.predictor import registry
from autoconf.predictor.predictor import Predictor

VERSION = "2.0.0"
MODELS = ["mistral-7b-v0.1", "llama3-8b", "granite-8b-code-base", "qwen2.5-7b", "llama3.1-70b"]
RATE = "tokens_per_second"
# The cluster: its hosts are slower than those of the public rows, and so is the network.
ONE, SEVERAL, NODES, NOISE = 0.85, 0.7, 0.45, 0.08


@cache
def predictor() -> Predictor:
    return registry.load(VERSION)


def jobs(count: int, seed: int) -> pd.DataFrame:
    """Random jobs of the cluster."""
    chance = np.random.default_rng(seed)
    gpus = chance.choice([1, 2, 4, 8, 16], count)
    return pd.DataFrame(
        {
            "model_name": chance.choice(MODELS, count), "method": chance.choice(["lora", "full"], count),
            "gpu_model": "NVIDIA-H100-80GB-HBM3", "tokens_per_sample": chance.choice([512, 1024, 2048, 4096], count),
            "batch_size": gpus * chance.choice([1, 2, 4, 8], count), "number_gpus": gpus, "gpus_per_worker": 8,
        }
    )  # fmt: skip


def truth(of: pd.DataFrame) -> np.ndarray:
    """The speed of jobs on the cluster, without noise."""
    gpus = of["number_gpus"].to_numpy()
    factors = np.where(gpus > 8, NODES, np.where(gpus > 1, SEVERAL, ONE))
    return throughput(of, model_version=VERSION)[RATE].to_numpy() * factors


def rows(of: pd.DataFrame, rates: np.ndarray, column: str = RATE) -> pd.DataFrame:
    """A table as it is read from a file."""
    table = of.assign(**{column: rates}).astype(str)
    return table.set_axis(pd.RangeIndex(2, len(of) + 2, name="line"))


def measured(of: pd.DataFrame, seed: int = 1) -> np.ndarray:
    return truth(of) * np.exp(np.random.default_rng(seed).normal(0, NOISE, len(of)))


def learned(table: pd.DataFrame):
    return learn_speed(predictor(), table, "runs.csv")


def error(found, of: pd.DataFrame) -> float:
    """The median error about jobs, after learning if anything was learned."""
    predicted = throughput(of, model_version=VERSION)[RATE].to_numpy()
    nodes = np.where(of["number_gpus"] > 8, 2, 1)
    if found:
        predicted = predicted * [found.speed.factor(*layout) for layout in zip(of["number_gpus"], nodes, strict=True)]
    return float(np.median(np.abs(predicted / truth(of) - 1)))


FRESH = jobs(300, 99)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_thirty_rows_help(seed):
    some = jobs(30, seed)
    found = learned(rows(some, measured(some, seed)))
    assert found.adopted and found.sentence.startswith("adopted; ")
    before = error(None, FRESH)
    assert before > 0.25 and error(found, FRESH) < 0.1
    assert found.speed.one == pytest.approx(ONE, abs=0.12) and found.speed.nodes == pytest.approx(NODES, abs=0.12)
    was, is_now = (row["median error %"] for row in found.evaluation)
    assert is_now < was / 2


def test_a_minority_of_wrong_rows_does_no_harm():
    some = jobs(40, 4)
    rates = measured(some)
    rates[:8] *= np.random.default_rng(0).choice([0.05, 0.2, 4, 30], 8)
    found = learned(rows(some, rates))
    assert found.adopted and error(found, FRESH) < 0.12
    assert any(row["rows of throughput"].startswith("exceeds 70%") and row["count"] for row in found.report)


@pytest.mark.parametrize("seed", range(5))
def test_rows_that_are_only_wrong_change_nothing(seed):
    some = jobs(30, seed)
    chance = np.random.default_rng(seed)
    for rates in (10 ** chance.uniform(0, 4, 30), chance.permutation(measured(some)), np.full(30, 1.0)):
        found = learned(rows(some, rates))
        assert not found.adopted and found.speed is None and found.sentence.startswith("not adopted: ")


def test_a_cluster_like_that_of_the_public_rows_changes_nothing():
    some = jobs(30, 5)
    predicted = throughput(some, model_version=VERSION)[RATE].to_numpy()
    found = learned(rows(some, predicted * np.exp(np.random.default_rng(6).normal(0, NOISE, 30))))
    assert not found.adopted and found.speed is None and "the throughput does not change" in found.sentence


def test_throughput_of_one_gpu_in_the_column_of_all_is_noticed_and_its_own_column_is_read():
    some = jobs(40, 7)
    each = measured(some) / SEVERAL / some["number_gpus"].to_numpy()
    assert "seems to be that of one GPU" in learned(rows(some, each)).sentence
    right, wrong_name = (
        learned(rows(some, rates, column))
        for rates, column in (
            (measured(some), RATE),
            (measured(some) / some["number_gpus"].to_numpy(), "tokens_per_second_per_gpu"),
        )
    )
    assert right.speed == wrong_name.speed


def test_few_rows_and_rows_without_throughput_are_refused_with_a_reason():
    some = jobs(4, 8)
    assert "4 rows are too few" in learned(rows(some, measured(some))).sentence
    with pytest.raises(
        BadInput, match=r"runs\.csv, line 2, column tokens_per_second: must be a number > 0, got 'fast'"
    ):
        learned(rows(some, np.array(["fast"] * 4)))
    with pytest.raises(BadInput, match="no throughput to learn from; 4 read"):
        learned(rows(some.assign(model_name="gpt-9"), measured(some)))
    check_jobs(rows(some, measured(some)), "runs.csv")


def test_answers_have_the_factors_the_bounds_and_what_was_measured(monkeypatch):
    some = jobs(60, 9)
    speed = learned(rows(some, measured(some))).speed
    job = Workload(
        model_name="mistral-7b-v0.1", method="lora", gpu_model="NVIDIA-H100-80GB-HBM3", tokens_per_sample=2048,
        batch_size=32,
    )  # fmt: skip
    before = throughput(job, 8, model_version=VERSION)
    assert before.notes[0].startswith("not measured: NVIDIA-H100-80GB-HBM3")
    monkeypatch.setattr(predictor(), "card", predictor().card.model_copy(update={"cluster_speed": speed}))
    after = throughput(job, 8, model_version=VERSION)
    assert after.tokens_per_second == pytest.approx(before.tokens_per_second * speed.several)
    assert after.step_seconds == pytest.approx(before.step_seconds / speed.several)
    assert after.tokens_per_second_high / after.tokens_per_second_low < 1.6
    assert before.tokens_per_second_high / before.tokens_per_second_low > 2
    assert not any("NVIDIA-H100" in note for note in after.notes)
