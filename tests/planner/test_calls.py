"""Each value of a job is read once, in few calls, through every interface."""

import pandas as pd
import pytest
from calls import calls_of
from example_job import EXAMPLE

from autoconf import recommend
from autoconf.min_gpu_recommender import min_gpu_recommender

JOB = {**EXAMPLE, "model_version": "2.0.0"}
TABLE = pd.DataFrame([JOB])


@pytest.mark.parametrize("ask", [lambda: min_gpu_recommender(**JOB), lambda: recommend(TABLE)], ids=["job", "table"])
def test_a_job_is_read_once_and_takes_at_most_160_calls(ask):
    calls = calls_of(ask)
    reads = [name for _, name in calls if name == "read"]
    assert len(reads) <= len(JOB) + 1  # the default version is the seventh
    assert 50 < len(calls) <= 160
