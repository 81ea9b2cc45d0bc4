"""Real runs near the edge are replayed by few recordings, and rules are judged by runs that they have not seen."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("torch", reason="jobs are recorded with the extra [build], installed on Python 3.11")

from autoconf.jobs.stack import Stack
from autoconf.pipeline.calibration import replayed_rows
from autoconf.pipeline.calibration.reserve import free_gib
from autoconf.pipeline.catalog import architectures
from autoconf.pipeline.validation.benchmark_runs import Run


def rows(**columns: list[object]) -> pd.DataFrame:
    """Rows of two tables and two models."""
    count = len(next(iter(columns.values())))
    common = {"table": ["a", "b"] * (count // 2), "model": ["m", "n"] * (count // 2), "number_gpus": [1] * count}
    return pd.DataFrame({**common, **columns})


def test_the_peak_decides_where_too_little_or_plenty_is_free() -> None:
    found = replayed_rows.undecided(pd.DataFrame({"usable_gib": [80.0] * 4, "peak_gib": [85.0, 79.9, 70.0, 50.0]}))
    assert found.tolist() == [False, False, True, False]


def test_every_row_has_what_is_free_beyond_its_replay_or_beyond_the_worst_case() -> None:
    found = replayed_rows.read()
    is_open = replayed_rows.undecided(found)
    assert is_open.sum() > 100 and found["least_gib"].notna().equals(pd.Series(is_open))
    free = free_gib(found)
    assert (found["spare"] <= free + 1e-6).all()
    failed = found[~is_open & (free < 1)]
    assert (failed["spare"] < 1).all() and (failed["fits"] == 0).all()


def test_a_rule_that_separates_runs_is_sure_of_unseen_ones() -> None:
    # What is free beside the peak says nothing about these runs; what is free beyond the replay decides them.
    table = rows(
        usable_gib=[80.0] * 8, peak_gib=[75.0] * 8, activations_gib=[9.0] * 8, method=["full"] * 8,
        spare=[0.5, 0.6, 4.0, 4.1, 0.4, 0.5, 3.9, 4.2], fits=[0, 0, 1, 1, 0, 0, 1, 1],
    )  # fmt: skip
    replay = replayed_rows.held_out(replayed_rows.as_rule(table, replayed_rows.REPLAY), "table")
    assert ((replay > 0.5) == (table["fits"] == 1)).all() and replay.max() > 0.8 > 0.3 > replay.min()
    constant = replayed_rows.held_out(replayed_rows.as_rule(table, replayed_rows.CONSTANT), "table")
    assert np.ptp(constant) < 0.1
    lines = replayed_rows.edges(table)
    assert [line["most of a failed run"] for line in lines[:2]] == ["5.00", "0.60"]
    assert [line["least of a finished one"] for line in lines[:2]] == ["5.00", "3.90"]


def test_runs_of_one_job_share_a_recording() -> None:
    def run(samples: int) -> Run:
        return Run(
            line=samples, model="smollm2", architecture=architectures()["smollm2-135m"], method="full",
            stack=Stack(gradient_accumulation=False), framework="none", gpus=1, tokens_per_gpu=512 * samples,
            libraries=None, usable_gib=80.0, failed=False, peak_gib=None, unreported_gib=0.0, samples=samples,
        )  # fmt: skip

    fields = {**run(1).job(), "gpus": 1}
    job = replayed_rows._Job(None, fields, [("table", run(2)), ("table", run(8))])
    found = list(replayed_rows._replayed(job))
    assert [(row["line"], row["how"]) for row in found] == [(2, "short model"), (8, "short model")]
    # 134.5 million parameters with two states, gradients and a temporary, 10 bytes each, and the logits of the larger.
    assert 1.2 < found[0]["least_gib"] < found[1]["least_gib"] < 5
