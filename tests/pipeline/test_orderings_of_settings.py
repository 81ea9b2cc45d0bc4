"""Orderings of settings that versions up to 2.0.0 do not know."""

from __future__ import annotations

from itertools import islice

import pytest

pytest.importorskip("torch", reason="versions are made with the extra [build], installed on Python 3.11")

from autoconf.pipeline.release.orderings import Checker, promises_of_settings
from autoconf.pipeline.release.train import all_settings
from autoconf.predictor import registry
from autoconf.predictor.predictor import Predictor


@pytest.fixture(scope="module")
def start() -> Predictor:
    return registry.load("3.0.0")


def test_a_version_without_the_settings_promises_nothing_about_them():
    assert not list(promises_of_settings(Checker(registry.load("2.0.0"))))


def test_stages_offload_and_float32_parameters_are_ordered(start):
    domain = start.domain.model_copy(update=all_settings())
    card = start.card.model_copy(update={"domain": domain})

    class WithSettings(Predictor):
        def answers(self, table):
            return start.answers(table)

    promises = list(promises_of_settings(Checker(WithSettings(card, start.memory, None))))
    names = [promise.never_needs_less for promise in promises]
    assert names[:3] == ["ZeRO-1 than ZeRO-2", "ZeRO-2 than ZeRO-3", "upcast_unquantized all than norms"]
    settings = {"quantization", "gradient_sync", "offload", "trained_modules", "adapters", "fsdp1's", "fsdp2's", "ddp"}
    settings.add("gradient_checkpointing")
    assert {name.partition(" ")[0] for name in names[3:]} == settings
    for promise in promises:
        assert list(islice(promise.violations, 2)) == ["", ""], promise
