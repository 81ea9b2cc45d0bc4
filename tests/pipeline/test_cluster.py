"""Learning the safety margin of a cluster from noisy runs, and when it is not adopted."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from autoconf.errors import BadInput
from autoconf.jobs.tables import read_table
from autoconf.pipeline.calibration.cluster import learn_cluster
from autoconf.pipeline.calibration.user_runs import contradicting, read_user_runs
from autoconf.pipeline.release.random_jobs import random_jobs
from autoconf.planner.rules import passing
from autoconf.predictor import check_jobs, registry
from autoconf.predictor.autogluon import LABEL, fit, load_tabular
from autoconf.predictor.predictor import MONOTONE, Predictor

EXAMPLE = Path(__file__).parents[2] / "examples" / "measured_a100.csv"
FACTOR = "factor on needed memory"
JOB = {
    "model_name": "Llama 3.1 8B", "method": "lora", "gpu_model": "NVIDIA-A100-SXM4-80GB", "tokens_per_sample": "4096",
    "batch_size": "8", "number_gpus": "2",
}  # fmt: skip
SFT = {
    "identifier": "x", "generatorid": "g", "model_name": "llama3-8b", "gpu_model": "NVIDIA-A100-SXM4-80GB",
    "model_max_length": "4096", "batch_size": "8", "number_gpus": "2", "gpu_memory_utilization_peak": "61.5",
    "is_valid": "1", "experiment_id": "SFTTrainer.finetune_lora_benchmark-v1.0.0-fms_hf_tuning_version.2.8.2",
}  # fmt: skip


@cache
def predictor() -> Predictor:
    return registry.load("2.0.0")


def table(*rows: dict[str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, index=pd.RangeIndex(2, len(rows) + 2, name="line"), dtype=object).fillna("")


def read(*rows: dict[str, str]):
    return read_user_runs(predictor(), table(*rows), "runs.csv")


def count(report: list[dict], begins: str) -> int:
    return sum(row["count"] for row in report if row["rows"].startswith(begins))


# --- worlds -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool() -> pd.DataFrame:
    return random_jobs(predictor(), np.random.default_rng(3), 2_000, 40)


def needs_and_has(jobs: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    candidates = check_jobs.candidates(predictor(), jobs)
    return candidates.usable_gib - predictor().features(candidates)["headroom_gib"].to_numpy(), candidates.usable_gib


def fits(jobs: pd.DataFrame, factor: float) -> np.ndarray:
    """Whether jobs fit if they need this many times the memory."""
    needed, usable = needs_and_has(jobs)
    return factor * needed <= usable


def some(pool: pd.DataFrame, factor: float, rows: int, generator: np.random.Generator) -> pd.DataFrame:
    """Jobs, half of them within a tenth of GPU memory from the limit."""
    needed, usable = needs_and_has(pool)
    beyond = (usable - factor * needed) / usable
    near, far = np.flatnonzero(abs(beyond) < 0.1), np.flatnonzero((abs(beyond) >= 0.1) & (beyond > -3))
    chosen = [generator.choice(of, rows // 2, replace=False) for of in (near, far)]
    return pool.iloc[generator.permutation(np.concatenate(chosen))].reset_index(drop=True)


def as_seen(jobs: pd.DataFrame, factor: float, generator: np.random.Generator) -> np.ndarray:
    """Which runs failed, where one of seven trained with another setting than its columns say, and of those that fit
    one of ten failed for another reason."""
    other = jobs.copy()
    which = generator.integers(0, 3, len(jobs))
    for number, (setting, values) in enumerate(
        {
            "optim": ["adamw_torch", "adamw_torch_fused", "adamw_bnb_8bit", "sgd"],
            "loss": ["full", "chunked"],
            "gradient_checkpointing": ["none", "reentrant", "non-reentrant"],
        }.items()
    ):
        other.loc[which == number, setting] = generator.choice(values, (which == number).sum())
    hidden = (generator.random(len(jobs)) < 0.15) & check_jobs.supported(predictor(), other)
    real = jobs.copy()
    real.loc[hidden] = other.loc[hidden]
    return ~fits(real, factor) | (generator.random(len(jobs)) < 0.1)


def as_table(jobs: pd.DataFrame, failed: np.ndarray) -> pd.DataFrame:
    return table(
        *jobs.assign(failed=failed.astype(int))
        .astype(object)
        .map(lambda v: "" if pd.isna(v) else str(v))
        .to_dict("records")
    )


def decisions(reserve, jobs: pd.DataFrame) -> np.ndarray:
    card = predictor().card.model_copy(update={"reserve": reserve})
    candidates = check_jobs.candidates(predictor(), jobs)
    headroom = Predictor(card, predictor().memory, None).features(candidates)["headroom_gib"]
    return (headroom.to_numpy() >= 0) & passing(candidates)


@pytest.fixture(scope="module")
def hungrier(pool):
    """The margin learned if jobs need 6 % more memory, the share of wrong labels, and new jobs."""
    generator = np.random.default_rng(11)
    jobs = some(pool, 1.06, 600, generator)
    failed = as_seen(jobs, 1.06, generator)
    cluster = learn_cluster(predictor(), as_table(jobs, failed), "runs.csv")
    return cluster, (failed == fits(jobs, 1.06)).mean(), some(pool, 1.06, 1_000, generator)


def test_a_world_that_needs_more_is_learned_better_than_the_version_and_the_table_know_it(hungrier):
    cluster, labels_wrong, fresh = hungrier
    true = fits(fresh, 1.06)
    before, after = ((decisions(of, fresh) != true).mean() for of in (predictor().card.reserve, cluster.reserve))
    assert cluster.adopted and cluster.sentence.startswith("adopted; held-out runs are predicted ")
    assert after < before / 3 and after < labels_wrong
    assert 0.04 < cluster.reserve.peak_share < 0.09 and cluster.learned[FACTOR] == round(
        1 + cluster.reserve.peak_share, 4
    )
    was, is_now = cluster.evaluation
    assert is_now["log score"] > was["log score"]
    assert is_now["false positives"] < was["false positives"]


def test_the_learned_margin_is_monotone_and_the_predictor_follows_it(hungrier, tmp_path):
    cluster, _, _ = hungrier
    one, several = np.array(cluster.reserve.one_gpu_gib), np.array(cluster.reserve.several_gpus_gib)
    assert (one >= 0).all() and (np.diff(one) >= 0).all() and (np.diff(several) >= 0).all() and (several >= one).all()
    assert (np.diff(several) / np.diff(cluster.reserve.activations_gib) < 1).all()
    fit(cluster.training_table, tmp_path / "predictor", MONOTONE)
    tabular = load_tabular(tmp_path / "predictor", "mine")
    headroom = np.linspace(-10, 10, 4_001)
    for sharded in (0.0, 1.0):
        asked = pd.DataFrame({"headroom_gib": headroom, "sharded": sharded})
        likely = tabular.predict_proba(asked, as_pandas=False, as_multiclass=False)
        assert (np.diff(likely) >= 0).all()
        assert abs(headroom[(likely >= predictor().card.threshold).argmax()]) < 0.2


def test_in_the_world_that_the_version_sees_nothing_changes(pool):
    generator = np.random.default_rng(12)
    jobs = some(pool, 1.0, 600, generator)
    cluster = learn_cluster(predictor(), as_table(jobs, as_seen(jobs, 1.0, generator)), "runs.csv")
    assert not cluster.adopted and "not adopted" in cluster.sentence
    assert cluster.reserve == predictor().card.reserve and cluster.training_table is None


def test_measured_peaks_alone_teach_the_factor(pool):
    generator = np.random.default_rng(13)
    jobs = some(pool, 1.0, 200, generator)
    jobs = jobs[fits(jobs, 1.2)].reset_index(drop=True)
    candidates = check_jobs.candidates(predictor(), jobs)
    peaks = predictor().memory.peak_bytes(candidates.rows, candidates.gpus, candidates.tokens_per_gpu) / 2**30
    measured = as_table(jobs, np.zeros(len(jobs))).drop(columns="failed")
    measured["peak_allocated_gib"] = [f"{p:.4f}" for p in 1.08 * peaks * np.exp(generator.normal(0, 0.01, len(peaks)))]
    cluster = learn_cluster(predictor(), measured, "runs.csv")
    assert cluster.adopted and cluster.reserve.peak_share == pytest.approx(0.08, abs=0.01)
    lower = measured.assign(peak_allocated_gib=[f"{p:.4f}" for p in 0.9 * peaks])
    found = learn_cluster(predictor(), lower, "runs.csv")
    assert found.learned[FACTOR] == pytest.approx(1, abs=0.002) and not found.adopted


def test_memory_that_was_never_in_use_speaks_for_less_and_cache_for_nothing(pool):
    jobs = some(pool, 1.0, 200, np.random.default_rng(15))
    jobs = jobs[fits(jobs, 1.05)].reset_index(drop=True)
    candidates = check_jobs.candidates(predictor(), jobs)
    peaks = predictor().memory.peak_bytes(candidates.rows, candidates.gpus, candidates.tokens_per_gpu) / 2**30
    finished = as_table(jobs, np.zeros(len(jobs)))
    tight = 100 * np.minimum((1.0 + 1.02 * peaks) / candidates.usable_gib, 1)
    said = [
        learn_cluster(predictor(), finished.assign(gpu_memory_utilization_peak=used), "runs.csv").learned[
            "offset in GiB"
        ]
        for used in ([f"{used:.2f}" for used in tight], "99.9", "")
    ]
    assert said[0] < said[2] - 0.2 and abs(said[1] - said[2]) < 0.1


def test_the_same_table_teaches_the_same(pool):
    generator = np.random.default_rng(14)
    jobs = some(pool, 1.06, 120, generator)
    measured = as_table(jobs, as_seen(jobs, 1.06, generator))
    one, other = (learn_cluster(predictor(), measured, "runs.csv") for _ in range(2))
    assert (one.reserve, one.learned, one.evaluation) == (other.reserve, other.learned, other.evaluation)


def test_real_runs_that_the_version_learned_from_change_nothing():
    cluster = learn_cluster(predictor(), read_table(str(EXAMPLE)), EXAMPLE.name)
    assert count(cluster.report, "read") == 224 and count(cluster.report, "outside") == 0
    assert not cluster.adopted and cluster.learned[FACTOR] == pytest.approx(1, abs=0.005)


# --- reading ----------------------------------------------------------------------------------------------------------


def test_names_are_found_as_everywhere():
    one, other = read({**JOB, "failed": "0"}), read({**JOB, "model_name": "llama3.1-8b", "is_valid": "True"})
    assert one.candidates.tokens_per_gpu.tolist() == other.candidates.tokens_per_gpu.tolist() == [16384.0]
    assert one.runs[LABEL].tolist() == other.runs[LABEL].tolist() == [1]


def test_measurements_of_the_actuator_are_read_as_they_are():
    found = read(
        SFT,
        {**SFT, "batch_size": "64", "is_valid": "0", "gpu_memory_utilization_peak": ""},
        {**SFT, "experiment_id": "SFTTrainer.finetune_full_benchmark@v1.0.0-gradient_accumulation_steps.1"},
        {**SFT, "number_gpus": "0", "gpu_model": "", "gpu_memory_utilization_peak": "0.0"},
        {**SFT, "batch_size": "7", "is_valid": "0"},
        {**SFT, "experiment_id": "SFTTrainer.finetune_gptq-lora_benchmark-v1.0.0"},
        {**SFT, "is_valid": "", "gpu_memory_utilization_peak": ""},
    )
    assert found.runs[LABEL].tolist() == [1, 0, 1]
    assert found.runs["in_use_share"].tolist()[0] == pytest.approx(0.615)
    assert found.ignored == ["identifier", "generatorid"]
    reasons = {row["rows"]: row["count"] for row in found.report if row["rows"].startswith("outside")}
    assert len(reasons) == 3 and "outside the domain: number_gpus is 0" in reasons
    assert "outside the domain: number_gpus 2 does not divide batch_size 7" in reasons
    assert count(found.report, "without an outcome") == 1
    like = {**JOB, "model_name": "llama3-8b", "stack": "fms-hf-tuning", "gradient_checkpointing": "non-reentrant"}
    for row, own in (
        (0, {**like, "lora_r": "4"}),
        (2, {**like, "method": "full", "gradient_accumulation_steps": "1"}),
    ):
        same = read({**own, "failed": "0"}).candidates
        assert same.rows.tolist() == [found.candidates.rows[row]]


def test_values_that_were_measured_several_times_are_lists():
    found = read(
        {**SFT, "is_valid": "[1, 1]", "gpu_memory_utilization_peak": "[61.5, 63.0]"}, {**SFT, "is_valid": "[1, 0]"}
    )
    assert found.runs["in_use_share"].tolist() == [0.63] and count(found.report, "without an outcome") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": "x"}, "runs.csv, line 2, column batch_size: must be a whole number >= 1, got 'x'"),
        ({"number_gpus": "1.5"}, "runs.csv, line 2, column number_gpus: must be a whole number >= 1, got '1.5'"),
        ({"failed": "maybe"}, "runs.csv, line 2, column failed: must be 0 or 1, got 'maybe'"),
        ({"peak_allocated_gib": "-1"}, "runs.csv, line 2, column peak_allocated_gib: must be a number > 0, got '-1'"),
        ({"gpu_memory_utilization_peak": "101"}, "line 2, column gpu_memory_utilization_peak: must be a number from 0"),
        (
            {"gpu_memory_utilization_peak": "0.8"},
            "column gpu_memory_utilization_peak: no value is above 1;",
        ),
        ({"is_valid": "1", "failed": "1"}, "runs.csv, line 2, column is_valid: contradicts failed"),
        ({"optim": "adam9"}, "runs.csv, line 2, column optim: must be adamw_torch, "),
        ({"model_name": "no-such-1b"}, "runs.csv: no row to learn from; 1 read; 0 used;"),
    ],
)
def test_bad_cells_are_named_with_line_and_column(change, message):
    with pytest.raises(BadInput) as caught:
        read({**JOB, "failed": "0", **change})
    assert message in str(caught.value)


def test_missing_columns_are_named_with_those_that_there_are():
    with pytest.raises(BadInput, match=r"line 1: required column missing: number_gpus, one of failed, .*; the table"):
        read({column: value for column, value in JOB.items() if column != "number_gpus"})


def test_at_most_twenty_problems_are_listed():
    with pytest.raises(BadInput) as caught:
        read(*[{**JOB, "failed": "0", "batch_size": "x"}] * 30)
    assert str(caught.value).count("\n") == 20 and str(caught.value).endswith("10 more problems")


# --- duplicates and contradictions ------------------------------------------------------------------------------------


def test_jobs_that_ended_alike_count_once():
    found = read(*[{**JOB, "failed": "0"}] * 3, {**JOB, "failed": "0", "number_gpus": "4"})
    assert len(found.runs) == 2 and count(found.report, "duplicates") == 2


def test_a_failure_that_larger_runs_contradict_is_left_out():
    larger = [{**JOB, "failed": "0", "batch_size": size} for size in ("16", "32")]
    found = read({**JOB, "failed": "1"}, *larger)
    assert found.runs["line"].tolist() == [3, 4] and count(found.report, "contradictions") == 1
    assert contradicting(predictor(), found.runs, found.candidates) == []


def test_a_finish_that_smaller_failures_contradict_is_left_out():
    smaller = [{**JOB, "failed": "1", "batch_size": size} for size in ("2", "4")]
    found = read(*smaller, {**JOB, "failed": "0"})
    assert found.runs["line"].tolist() == [2, 3]


@pytest.mark.parametrize("change", [{"method": "full"}, {"optim": "sgd"}, {"gpu_model": "L40S"}, {"number_gpus": "1"}])
def test_other_stacks_and_fewer_gpus_do_not_contradict(change):
    found = read({**JOB, "failed": "1", **change}, {**JOB, "failed": "0"})
    assert count(found.report, "contradictions") == 0
