"""A version's margin is learned from replays of random jobs and from real runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from autoconf.pipeline.calibration import fragmentation
from autoconf.pipeline.calibration.real_rows import read_rows
from autoconf.pipeline.calibration.reserve import Learned, for_pytorch, free_gib
from autoconf.predictor import registry
from autoconf.predictor.autogluon import LABEL

BASE, OF_STATES, SHARES = 0.5, 1.0, {"none": 0.1, "ddp": 0.2, "fsdp1": 0.2, "fsdp2": 0.5}


def made_up(count: int = 8_000) -> pd.DataFrame:
    """Replays that need exactly a constant, a share of their activations, and more with states."""
    generator = np.random.default_rng(3)
    sharding = generator.choice(list(SHARES), count)
    activations = np.where(generator.random(count) < 0.2, 0.0, generator.uniform(0, 100, count))
    states = generator.choice([0.0, 20.0], count)
    headroom = generator.uniform(-0.1, 0.7 * activations + 3)
    needs = BASE + OF_STATES * (states > 0) + np.array([SHARES[name] for name in sharding]) * activations
    return pd.DataFrame(
        {
            "model": generator.choice(list("abcdefgh"), count),
            "kind": sharding,
            "activations_gib": activations,
            "states_gib": states,
            "headroom_gib": headroom,
            LABEL: (headroom >= needs).astype(int),
        }
    )


def test_the_surface_of_replays_is_what_they_need() -> None:
    replays = fragmentation.OfReplays(made_up(), read_rows()[:0])
    for kind, share in SHARES.items():
        surface = replays.surface(kind, 0.9)
        assert (np.diff(surface.gib, axis=0) >= 0).all() and (np.diff(surface.gib, axis=1) >= 0).all()
        without, with_states = surface.at(np.full((1, 2), 50.0), np.array([0.0, 20.0]))[0]
        needs = BASE + 50 * share
        assert needs - 1 < without < 1.3 * needs + 1  # few jobs: rather too much
        assert without <= with_states < 1.3 * (needs + OF_STATES) + 1
        at_rest = surface.at(np.zeros((1, 2)), np.array([0.0, 20.0]))[0]
        assert at_rest == pytest.approx([BASE, BASE + OF_STATES], abs=0.3)
        bases = replays.bases(kind)
        assert list(bases) == sorted(bases) and np.median(bases) == pytest.approx(BASE, abs=0.2)


def test_real_runs_near_the_edge_count_as_much_as_all_replays() -> None:
    jobs, rows = fragmentation.read_jobs(), read_rows()
    one_gpu = rows[(rows["number_gpus"] == 1) & (rows[LABEL] == 1)].head(20)
    # As if they had run with a tenth of a GiB free.
    ran = one_gpu.assign(usable_gib=one_gpu["peak_gib"] + 0.1, activations_gib=10.0, states_gib=20.0)
    asked = fragmentation.as_jobs(ran.head(1))
    jobs = jobs.sample(5_000, random_state=0)
    before = fragmentation.OfReplays(jobs, rows[:0]).probabilities(asked)[0]
    assert before < 0.1 and fragmentation.OfReplays(jobs, ran).probabilities(asked)[0] > 0.5


def test_real_runs_that_finished_are_let_through_and_no_failure_is() -> None:
    card = registry.load("3.0.0").card
    assert card.fragmentation is not None and card.reserve is not None and card.outside_pytorch is not None
    rows = for_pytorch(read_rows(), card.outside_pytorch)
    margin = fragmentation.Margin(rows, Learned({}), card.fragmentation, card.reserve, card.outside_pytorch)
    fits = free_gib(rows).to_numpy() >= fragmentation.needed_gib(margin, fragmentation.as_jobs(rows))
    finished = (rows[LABEL] == 1).to_numpy()
    assert not fits[~finished].any()
    refused = rows[~fits & finished]
    assert len(refused) <= 0.02 * finished.sum()  # of real runs, 98 % have to be let through
    assert "measured_runs_mistral7b" not in set(refused["table"])
    at_rest = rows[(rows["activations_gib"] == 0) & finished]
    assert len(at_rest) > 50 and fits[at_rest.index].all()


def test_the_shipped_replays_are_of_many_jobs_and_agree_with_the_profiles() -> None:
    jobs = fragmentation.read_jobs()
    assert set(jobs["kind"]) == set(fragmentation.KINDS) and jobs["model"].nunique() > 30
    assert len(jobs) >= 200_000
    too_little = jobs["headroom_gib"] < -0.02 * jobs["held_gib"]
    assert (jobs.loc[too_little, LABEL] == 0).all()  # no replay runs with less than what a job holds
    assert jobs.loc[jobs["headroom_gib"] > 0.4 * jobs["activations_gib"] + 2, LABEL].mean() > 0.9


def test_a_recording_is_replayed_at_random_sizes_and_capacities(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="jobs are recorded with the extra [build], installed on Python 3.11")
    from autoconf.jobs.presets import SETTINGS
    from autoconf.memory.units import GIB
    from autoconf.pipeline.catalog import architectures
    from autoconf.pipeline.release import replayed_jobs
    from autoconf.pipeline.replay import compiled
    from autoconf.pipeline.tracing.model_setup import TrainingSetup

    job = {
        "model_name": "smollm2-135m", "method": "lora", "stack": "reference", "gradient_accumulation_steps": 1,
        "gpus": 1, **dict.fromkeys(SETTINGS),
    }  # fmt: skip
    setup = TrainingSetup(architectures()["smollm2-135m"], "lora", replayed_jobs.stack_of(job), 1)
    assert replayed_jobs._record(job, setup, tmp_path, np.random.default_rng(0)) == 1
    (path,) = tmp_path.glob("*.npz")
    assert json.loads(path.with_suffix(".json").read_text()) == job
    recording = replayed_jobs.Replayed(path, replayed_jobs.memory_of("2.0.0"))
    rows = replayed_jobs.as_table(list(recording.rows(np.random.default_rng(1), 40)))
    assert 3 < len(rows) < 3 * 40  # small jobs are left out
    assert rows.groupby("tokens").size().eq(3).all()  # on GPUs of three capacities
    for row in rows.to_dict("records"):
        events = recording.events(row["tokens"], 1)
        assert compiled.replay(events).allocated / GIB == pytest.approx(row["held_gib"], rel=0.02)
        capacity = int((row["held_gib"] + row["headroom_gib"]) * GIB)
        assert (compiled.replay(events, capacity).failed_at < 0) == row[LABEL]
