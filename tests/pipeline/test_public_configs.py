"""Configs of public kinds of models: each is answered by its shapes, traced, or refused with its obstacle.

The configs have the sizes that transformers 5.23.0 has as the defaults of each type (``configuration_*.py``), and four
have those of public checkpoints with code of their own. ``outcomes.yaml`` has what becomes of each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from autoconf.errors import BadInput
from autoconf.jobs.model_names import ModelNames
from autoconf.predictor import registry

CONFIGS = Path(__file__).parents[1] / "data" / "model_configs"
OUTCOMES: dict[str, dict[str, Any]] = yaml.safe_load((CONFIGS / "outcomes.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def models() -> ModelNames:
    known = registry.card("3.0.0").domain.models
    return ModelNames({name: model.aliases for name, model in known.items()})


def test_there_are_at_least_40_configs_and_each_has_an_outcome():
    assert sorted(OUTCOMES) == sorted(file.stem for file in CONFIGS.glob("*.json"))
    assert len(OUTCOMES) >= 40


@pytest.mark.parametrize("name", OUTCOMES)
def test_a_config_is_matched_or_left_to_a_trace_or_refused(models, name):
    file, outcome = CONFIGS / f"{name}.json", OUTCOMES[name]
    assert models.find(str(file)) == outcome.get("shapes")
    if "shapes" in outcome:
        assert "parameters" in outcome
    elif "parameters" in outcome:
        assert models.unmatched_config(str(file)) == file
    elif models.unmatched_config(str(file)) is None:  # the config itself shows it
        key = outcome["refused"].partition(":")[0]
        assert f"{name}.json: {key}: " in models.refusal(str(file), "3.0.0")


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("name", OUTCOMES)
def test_a_config_can_be_traced_or_is_refused_with_its_obstacle(name):
    from autoconf.pipeline.tracing.hf_config import own_architecture

    file, outcome = str(CONFIGS / f"{name}.json"), OUTCOMES[name]
    if "parameters" in outcome:
        assert own_architecture(file, "public").parameters == outcome["parameters"]
        return
    with pytest.raises(BadInput) as refused:
        own_architecture(file, "public")
    assert str(refused.value).startswith(f"{file}: {outcome['refused']}")
