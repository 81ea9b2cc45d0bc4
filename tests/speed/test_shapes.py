"""Shapes of models: their weights add up to the published parameters."""

import re

import pytest

from autoconf.jobs.model_config import known_settings
from autoconf.pipeline.catalog import architectures
from autoconf.predictor import registry
from autoconf.speed.gpu_speed import TABLE, gpu_speeds
from autoconf.speed.shapes import known_shapes


@pytest.mark.parametrize("model", architectures())
def test_weights_add_up_to_the_published_parameters(model):
    shapes, settings = known_shapes(model), known_settings(model)
    embeddings = shapes.head * (1 if settings.get("tie_word_embeddings", True) else 2)
    weights = shapes.layers * shapes.layer_stored + embeddings
    # Norms, biases and learned positions are left out; they count most in the smallest OPT.
    tolerance = 0.015 if model == "opt-125m" else 0.005
    assert weights == pytest.approx(architectures()[model].parameters, rel=tolerance)


def test_experts_are_counted_by_what_a_token_passes_and_by_what_is_stored():
    mixtral = known_shapes("mixtral-8x7b-instruct-v0.1")
    assert (mixtral.experts, mixtral.chosen) == (8, 2)
    assert 3.9 < mixtral.stored / mixtral.active < 4.0  # the router is in both
    dense = known_shapes("llama-7b")
    assert (dense.experts, dense.chosen, dense.stored) == (1, 1, dense.active)


def test_every_model_and_gpu_type_of_every_version_is_known():
    assert known_shapes("another") is None
    for version in registry.RELEASED:
        domain = registry.card(version).domain
        assert all(known_shapes(model) for model in domain.models)
        assert {*domain.gpus} <= {*gpu_speeds()}


def test_figures_of_gpus_have_sources_and_plausible_relations():
    tables = set(re.findall(r"^# ([\w-]+) +(?:https://|data\.pkl)", TABLE.read_text(encoding="utf-8"), re.MULTILINE))
    assert len(tables) == 8
    for speed in gpu_speeds().values():
        assert "https://" in speed.source or tables & set(re.findall(r"[\w-]+", speed.source))
        assert speed.bfloat16 >= speed.float32
        assert speed.pair is None or speed.pair > speed.link
