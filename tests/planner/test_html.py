"""Answers show themselves in notebooks."""

import re
from html.parser import HTMLParser

import pytest

from autoconf import Estimate, Recommendation, Workload, estimate, explain, recommend
from autoconf.planner.memory_parts import COLORS, parts

JOB = {
    "model_name": "llama-7b", "method": "lora", "gpu_model": "NVIDIA-A100-80GB-PCIe", "tokens_per_sample": 8192,
    "batch_size": 16,
}  # fmt: skip
ATTACK = "<img src=x onerror=alert(1)>\"'&"


class Checked(HTMLParser):
    """Checks that every tag is closed, and collects texts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.text, self.tags = [], [], set()
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.tags.add(tag)
        assert not any(name.startswith("on") for name, _ in attributes)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def shown(answer) -> str:
    """The text of the HTML of an answer, which must be well formed."""
    return " ".join(" ".join(Checked(answer._repr_html_()).text).split())


def test_a_recommendation_shows_its_layout_or_the_reason():
    assert shown(recommend(Workload(**JOB))).startswith("2 GPUs with the training stack reference Notes stack was not")
    no = recommend(Workload(**JOB, max_gpus=1))
    assert shown(no).startswith("No recommendation: ") and no.reason in shown(no)


def test_an_estimate_shows_the_memory_by_part():
    held = estimate(Workload(**JOB), number_gpus=2)
    text = shown(held)
    assert text.startswith("Fits: each GPU needs 61.5 GiB of 79.1")
    for part, gib in parts(held).items():
        assert f"{part} {gib:.1f}" in text
    assert "fragmentation" in text
    before = shown(estimate(Workload(**JOB, model_version="2.0.0"), number_gpus=2))
    assert "fragmentation" not in before  # version 2.0.0 counts it as reserve
    assert "No estimate" in shown(estimate(Workload(**JOB, model_version="1.1.0"), number_gpus=2))


def test_an_explanation_shows_the_answer_the_bars_and_the_changes():
    found = explain(Workload(**JOB))
    text, html = shown(found), found._repr_html_()
    assert text.index("2 GPUs") < text.index("needs 112.6 GiB") < text.index("batch_size=11 would fit on 1 GPU")
    for held in found.at.values():
        extent = max(one.needed_memory_gib for one in found.at.values())
        for part, gib in parts(held).items():
            width = 100 * gib / extent
            assert width == 0 or f"width:{width:.3f}%;background:{COLORS[part]}" in html
    labels = re.findall(r'role="img" aria-label="([^"]+)"', html)
    assert len(labels) == 2 and "weights" in labels[0]


def test_an_explanation_outside_the_domain_has_the_reason_alone():
    found = explain(Workload(**{**JOB, "model_name": "no-such-model"}))
    assert shown(found).startswith("No recommendation: model_name 'no-such-model' is not in")
    assert "role=" not in found._repr_html_()


@pytest.mark.parametrize("answer", [
    Recommendation(reason=ATTACK, notes=(ATTACK,)), Recommendation(1, 1, 1, stack=ATTACK),
    Estimate(reason=ATTACK, notes=(ATTACK,)), explain(Workload(**{**JOB, "model_name": ATTACK})),
])  # fmt: skip
def test_all_text_is_escaped(answer):
    found = Checked(answer._repr_html_())
    assert "img" not in found.tags
    assert "<img src=x onerror=alert(1)>" in " ".join(found.text)
