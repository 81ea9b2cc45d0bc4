"""Nothing is predicted twice: not for the parts of one answer, and not when a job is asked for again."""

import pytest

from autoconf import Workload, estimate, explain, recommend
from autoconf.predictor import registry

JOB = {
    "model_name": "llama-7b", "method": "lora", "gpu_model": "NVIDIA-A100-80GB-PCIe", "tokens_per_sample": 8191,
    "batch_size": 16,
}  # fmt: skip


@pytest.fixture(params=registry.RELEASED)
def predicted(request, monkeypatch):
    """The rows of features that AutoGluon's predictor of a version is given; it has predicted nothing before."""
    predictor, rows = registry.load(request.param), []
    monkeypatch.setattr(registry, "DEFAULT", request.param)
    monkeypatch.setattr(predictor, "_known", {})
    real = predictor._tabular

    class Noting:
        def predict_proba(self, table, **options):
            rows.extend(map(tuple, table.to_numpy().tolist()))
            return real.predict_proba(table, **options)

    monkeypatch.setattr(predictor, "_tabular", Noting())
    return request.param, rows


@pytest.mark.parametrize("ask", [
    lambda job: recommend(job), lambda job: explain(job), lambda job: estimate(job, number_gpus=1),
], ids=["recommend", "explain", "estimate"])  # fmt: skip
@pytest.mark.parametrize("more", [{}, {"max_gpus": 1}], ids=["an answer", "no answer"])
def test_no_features_are_predicted_twice(predicted, ask, more):
    version, rows = predicted
    job = Workload(**JOB, **more, model_version=version)
    first = ask(job)
    assert len(rows) == len({*rows})
    asked = len(rows)
    assert ask(job) == first
    assert len(rows) == asked
