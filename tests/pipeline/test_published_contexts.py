"""Answers under the stack unsloth against the longest samples that unsloth published."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="versions are made with the extra [build], installed on Python 3.11")

from autoconf.jobs.presets import presets
from autoconf.pipeline.catalog import NEWEST
from autoconf.pipeline.validation.published_contexts import Published, compared, summary
from autoconf.predictor import registry


@pytest.fixture(scope="module")
def found() -> list[Published]:
    return compared(registry.load(NEWEST))


def test_answers_say_how_far_they_are_from_all_published_figures(found):
    assert presets()["unsloth"].approximate == summary(found)
    assert sum(one.stack == "unsloth" for one in found) == 9


def test_the_sentence_is_of_the_farthest_figure():
    some = [Published("m", 8, "unsloth", 100, answered, 0) for answered in (90, 74)]
    assert summary(some) == "within 26 % of 2 published figures, all of which unsloth reaches with less memory"
    longer = Published("m", 8, "unsloth", 100, 140, 0)
    assert (
        summary([*some, longer, longer._replace(stack="other", answered=500)]) == "within 40 % of 3 published figures"
    )


def test_an_answer_is_never_beyond_the_peak_alone(found):
    assert all(0 < one.answered < one.without_margin for one in found)
