"""What the documents say of a version is what the version is."""

import json
import re
from pathlib import Path

import pytest

from autoconf import predictors

ROOT = Path(__file__).parents[1]
README = (predictors.MODELS / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("version", predictors.RELEASED)
def test_the_versions_readme_lists_every_name_and_alias(version):
    domain = predictors.card(version).domain
    for name, model in domain.models.items():
        assert f"[{name}](" in README
        assert all(f"`{alias}`" in README for alias in model.aliases), name
    for name, gpu in domain.gpus.items():
        assert f"| `{name}` | {gpu.usable_gib:g} |" in README


@pytest.mark.parametrize("version", predictors.RELEASED)
def test_the_versions_readme_has_the_cards_figures(version):
    evaluation = predictors.card(version).evaluation
    assert f"{evaluation['jobs']:,} jobs that training never saw" in README
    for figure, value in evaluation["figures"].items():
        assert re.search(rf"\| {re.escape(figure)} \| .* \| {value:g} % \|", README), figure
    for row in evaluation["leave_one_out"]:
        assert f"| {row['model never seen']} | {row['jobs']} |" in README


@pytest.mark.parametrize("version", predictors.RELEASED)
def test_required_figures_are_met(version):
    card = json.loads((predictors.MODELS / version / "card.json").read_text())["evaluation"]
    same_decision, same_minimum, harmful, sweep, *never = card["figures"].values()
    assert same_decision >= 99.5
    assert same_minimum >= 99
    assert harmful <= 0.1
    assert sweep >= 99.5
    assert len(never) == 5 and not any(never)
    measured = card["measured"]
    assert measured["runs answered with at most their GPUs"] == measured["runs"]
    assert measured["doublings above a frontier said to fit"] == 0


@pytest.mark.parametrize("document", [*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), predictors.MODELS / "README.md"],
                         ids=lambda p: p.name)  # fmt: skip
def test_links_between_documents_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
