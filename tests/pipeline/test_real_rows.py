"""Learning the safety margin and the predictor from real runs."""

from __future__ import annotations

import csv
from importlib.resources import files

import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from autoconf.errors import AutoConfError
from autoconf.pipeline.calibration import held_out, real_rows, reserve
from autoconf.pipeline.calibration.held_out import DecisionRule
from autoconf.pipeline.calibration.reserve import THRESHOLD, features, free_gib, learn, training_rows
from autoconf.pipeline.validation import benchmark_runs, environments
from autoconf.pipeline.validation.benchmark_runs import read_runs
from autoconf.pipeline.validation.environments import Libraries
from autoconf.predictor.autogluon import LABEL, fit, load_tabular
from autoconf.predictor.predictor import MONOTONE

ROWS = real_rows.read_rows()
LEARNED = learn(ROWS)
APP = typer.Typer()
APP.command()(real_rows.main)
CAMPAIGN = {
    "model_name": "granite-3.1-2b", "method": "lora", "gpu_model": "NVIDIA-A100-SXM4-80GB", "number_gpus": 4,
    "tokens_per_sample": 1024, "batch_size": 16, "failed": 0,
}  # fmt: skip


@pytest.fixture
def runs(tmp_path):
    def write(*rows: dict):
        path = tmp_path / "campaign.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        return path

    return write


@pytest.fixture(scope="module")
def tabular(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "predictor"
    fit(training_rows(np.random.default_rng(0)), folder, MONOTONE)
    return load_tabular(folder, "trained")


# --- rows -------------------------------------------------------------------------------------------------------------


def traced(libraries, jobs):
    """A peak of 10 GiB, 4 of them activations of 4,096 tokens."""
    moment = [6 * 2**30, 2**20, 0]
    return [{"moments": [moment], "end": [0, 0, 0], "states": 0, "step": 0, "shards_states": True} for _ in jobs]


def test_a_run_becomes_a_row_with_its_traced_peak(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "traced", traced)
    output = tmp_path / "rows.csv"
    unknown_shapes = {**CAMPAIGN, "model_name": "granite-8b-japanese"}
    experts = {**CAMPAIGN, "model_name": "granite-3.1-3b-a800m-instruct", "failed": 1}
    found = CliRunner().invoke(APP, [str(runs(CAMPAIGN, unknown_shapes, experts)), "--output", str(output)])
    assert found.exit_code == 0 and found.stdout.startswith("3 rows, 1 of them left out, ")
    dense, sparse = real_rows.read_rows(output).to_dict("records")
    assert (dense["table"], dense["line"], dense["model"], dense["method"]) == ("campaign", 2, "granite-3.1-2b", "lora")
    assert (dense["number_gpus"], dense["tokens_per_gpu"], dense["usable_gib"]) == (4, 4096, 79.15)
    assert (dense["peak_gib"], dense["activations_gib"]) == (10.016, 4.0)  # with cuBLAS's workspaces
    assert (dense["mixture_of_experts"], dense[LABEL]) == (0, 1)
    assert (sparse["line"], sparse["mixture_of_experts"], sparse[LABEL]) == (4, 1, 0)


def test_a_run_that_cannot_be_traced_is_named_and_nothing_written(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "traced", lambda libraries, jobs: [{"problem": "no such op"}] * len(jobs))
    output = tmp_path / "rows.csv"
    found = CliRunner().invoke(APP, [str(runs(CAMPAIGN)), "--output", str(output)])
    assert found.exit_code == 1
    assert "campaign.csv, line 2: cannot be traced: no such op" in found.stderr
    assert not output.exists()


def test_a_table_that_is_none_is_refused(runs):
    found = CliRunner().invoke(APP, [str(runs({**CAMPAIGN, "batch_size": "x"}))])
    assert found.exit_code == 2
    assert "line 2: batch_size: must be a whole number >= 1, got 'x'" in found.stderr


# --- one run of each library environment, traced again ----------------------------------------------------------------

SAMPLE = sorted((files("autoconf.pipeline.validation") / "one_run_per_environment").iterdir())


def test_every_library_environment_has_a_run_and_every_run_a_published_row():
    sample = [run for path in SAMPLE for run in read_runs(path)]
    campaign = {Libraries(*of) for of in benchmark_runs._sources()["campaign"]["libraries"].values()}
    assert campaign <= {run.libraries for run in sample}
    published = set(ROWS[["model", "method", "stack", "number_gpus"]].itertuples(index=False, name=None))
    assert {(run.architecture.name, run.method, run.stack_name, run.gpus) for run in sample} <= published
    assert len({run.libraries for run in sample}) == len(sample)  # minutes each


def test_a_peak_that_is_not_the_published_one_fails_the_check(monkeypatch):
    """Uses the peaks of ``traced`` instead of traces, which need an environment for each run."""
    monkeypatch.setattr(environments, "traced", traced)
    found = CliRunner().invoke(APP, ["--check", str(SAMPLE[0])])
    assert found.exit_code == 1
    assert "mistral-7b-v0.1, lora, fms-hf-tuning 2.8.2, 1 GPU: 8.016 GiB traced, 14.794 published" in found.stdout
    assert "0 of 3 runs have the published peak" in found.stdout


def test_published_peaks_pass_the_check():
    assert real_rows.differing(ROWS, ROWS) == []
    off = ROWS.assign(peak_gib=ROWS["peak_gib"] + 2 * real_rows.TOLERANCE_GIB)
    assert len(real_rows.differing(off.head(3), ROWS)) == 3


def test_missing_rows_are_an_error(tmp_path):
    with pytest.raises(AutoConfError, match=r"cannot read rows\.csv"):
        real_rows.read_rows(tmp_path / "rows.csv")


# --- what they teach --------------------------------------------------------------------------------------------------


def test_every_real_run_is_decided_as_it_happened():
    fits = features(ROWS, LEARNED.reserve())["headroom_gib"] >= 0
    assert (fits == (ROWS[LABEL] == 1)).all()


def test_a_failure_with_much_to_spare_raises_the_reserve_and_a_run_with_little_lowers_it():
    def reserve_with(free: float, fits: int) -> float:
        run = {**ROWS.iloc[0], "number_gpus": 1, "activations_gib": 0.0, "peak_gib": 79.15 - free, LABEL: fits}
        return learn(pd.concat([ROWS, pd.DataFrame([run])], ignore_index=True)).reserve().one_gpu_gib[0]

    now = LEARNED.reserve().one_gpu_gib[0]
    assert reserve_with(3.5, fits=0) > now + 0.1
    assert reserve_with(1.0, fits=1) < now - 0.1


def test_repeated_runs_that_ended_alike_count_once():
    again = learn(pd.concat([ROWS, ROWS[ROWS["line"] % 3 == 0]], ignore_index=True))
    assert again.reserve() == LEARNED.reserve()


@pytest.mark.parametrize("gpus", [1, 2])
def test_probability_rises_with_free_memory_and_falls_with_activations(gpus):
    free, activations = map(np.ravel, np.meshgrid(np.linspace(-5, 40, 91), np.linspace(0, 100, 21)))
    found = LEARNED.probabilities(free, activations, np.full(len(free), gpus)).reshape(21, 91)
    assert (np.diff(found, axis=1) >= 0).all() and (np.diff(found, axis=0) <= 0).all()
    assert 0 < found[0, 10] < 0.1 and 0.9 < found[0, 20] < 1  # 0 and 5 GiB without activations: nearly sure, not quite


def test_at_the_margin_a_job_fits_with_the_requested_probability():
    activations, gpus = np.array([0.0, 40.0, 0.0, 40.0]), np.array([1, 1, 8, 8])
    for probability in (0.5, 0.9):
        free = LEARNED.reserve(probability).gib(activations, gpus)
        assert LEARNED.probabilities(free, activations, gpus) == pytest.approx(probability, abs=0.01)


def test_several_gpus_must_keep_no_less_than_one_and_more_with_activations():
    reserve = LEARNED.reserve()
    one, several = np.array(reserve.one_gpu_gib), np.array(reserve.several_gpus_gib)
    assert (np.diff(one) > 0).all() and (np.diff(several) > 0).all()
    assert (several >= one).all() and several[4] > one[4] + 5
    # A GiB of activations never takes more than a GiB of peak does, or a smaller peak could be worth less.
    assert (np.diff(several) / np.diff(reserve.activations_gib) < 0.4).all()


# --- the predictor ----------------------------------------------------------------------------------------------------


def test_as_many_virtual_rows_fit_as_are_likely_to():
    drawn = reserve.virtual_rows(LEARNED, np.random.default_rng(1), 20_000)
    columns = (free_gib(drawn), drawn["activations_gib"], drawn["number_gpus"])
    likely = LEARNED.probabilities(*(column.to_numpy() for column in columns))
    stretch = np.floor(features(drawn, LEARNED.reserve())["headroom_gib"].clip(-5, 3) * 2)
    off = (drawn[LABEL] - likely).groupby(stretch).mean().abs()
    assert len(off) == 17 and off.max() < 0.02


@pytest.mark.parametrize("sharded", [0.0, 1.0])
def test_the_trained_predictor_is_monotone_and_decides_at_the_reserve(tabular, sharded):
    headroom = np.linspace(-10, 10, 20_001)
    asked = pd.DataFrame({"headroom_gib": headroom, "sharded": sharded})
    found = tabular.predict_proba(asked, as_pandas=False, as_multiclass=False)
    assert (np.diff(found) >= 0).all()
    assert abs(headroom[(found >= THRESHOLD).argmax()]) <= 0.05
    assert len(np.unique(found)) > 50  # a curve, not a step


# --- held out ---------------------------------------------------------------------------------------------------------


def test_nothing_is_learned_from_the_runs_that_judge():
    judged = set()

    def spy(fold: held_out.Fold) -> np.ndarray:
        assert not set(fold.known["model"]) & set(fold.unseen["model"])
        judged.update(fold.unseen.index)
        return held_out.curve(fold)

    held_out.held_out(DecisionRule("spied on", spy, THRESHOLD), "model")
    assert judged == set(ROWS.index)


def test_the_comparison_counts_the_wrong_decisions_of_a_constant():
    reserve_1_1_0 = DecisionRule("1.1.0", held_out.constant(held_out.VERSION_1_1_0), 0.5)
    for row in held_out.side_by_side((reserve_1_1_0,)):
        assert (row["failed, said to fit"], row["finished, said not to"], row["jobs given too few"]) == (6, 0, 1)


@pytest.mark.parametrize("split", ["table", "model"])
def test_a_curve_says_more_of_held_out_runs_than_a_step_at_its_reserve(split):
    fits = ROWS[LABEL].to_numpy()
    step, of_curve = (
        held_out.log_loss(fits, held_out.held_out(rule, split)).mean()
        for rule in (
            DecisionRule("step", held_out.learned_constant(THRESHOLD), 0.5),
            DecisionRule("curve", held_out.curve, THRESHOLD),
        )
    )
    assert of_curve < step / 2


def test_calibration_accounts_for_every_run_under_both_ways_of_holding_out():
    rule = DecisionRule("curve", held_out.curve, THRESHOLD)
    found = pd.DataFrame(
        held_out.real_calibration({split: held_out.held_out(rule, split) for split in ("table", "model")})
    )
    assert found.groupby("held out by")["runs"].sum().to_dict() == {"table": len(ROWS), "model": len(ROWS)}
    sure = found[found["predicted"] == "0.99 to 1"]
    assert (sure["share that finished"] == 1).all()


@pytest.mark.parametrize(
    ("said", "counted"),
    [
        ((False, True, True), (0, 0, 0)),
        ((True, True, True), (0, 1, 0)),
        ((False, False, True), (2, 0, 0)),
        ((False, False, False), (0, 0, 1)),
    ],
)
def test_gpus_beyond_need(said, counted):
    job = {"table": "t", "model": "m", "method": "full", "stack": "s", "usable_gib": 79.15}
    rows = pd.DataFrame([{**job, "number_gpus": n, "tokens_per_gpu": 8192 // n, LABEL: int(n > 1)} for n in (1, 2, 4)])
    assert tuple(held_out.beyond_need(rows, np.array(said)).values()) == counted
