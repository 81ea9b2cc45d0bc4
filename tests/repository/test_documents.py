"""What the documents say of a version is what the version is, and every command in them runs."""

import ast
import importlib.metadata
import itertools
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from autoconf import cli, recommend
from autoconf.cli.plots.answer_grid import POINT
from autoconf.predictor import registry

from ado.utilities import run_experiment
from ado_context import AdoContext

ROOT = Path(__file__).parents[2]
YOUR_OWN = ROOT / "docs" / "your-own.md"  # test_your_own.py runs all of it
_FOUND = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
    *ROOT.glob("sweep/*.md"),
    *ROOT.glob("examples/*/*.md"),
    *registry.MODELS.glob("*.md"),
]
DOCUMENTS = [document for document in _FOUND if document != YOUR_OWN]
PAGES = ROOT / "docs" / "versions"


@pytest.mark.parametrize("version", registry.RELEASED)
def test_the_page_of_a_domain_lists_every_name_and_alias(version):
    domain, page = registry.card(version).domain, (PAGES / f"domain-{version}.md").read_text(encoding="utf-8")
    for name, model in domain.models.items():
        assert f"[{name}](" in page
        assert all(f"`{alias}`" in page for alias in model.aliases), name
    for name, gpu in domain.gpus.items():
        assert f"| `{name}` | {gpu.usable_gib:g} |" in page


@pytest.mark.parametrize("version", registry.RELEASED)
def test_the_page_of_an_evaluation_has_the_cards_figures(version):
    evaluation = registry.card(version).evaluation
    page = (PAGES / f"evaluation-{version}.md").read_text(encoding="utf-8")
    assert f"{evaluation['jobs']:,} jobs that training never saw" in page
    for figure, value in evaluation["figures"].items():
        assert re.search(rf"\| {re.escape(figure)} \| .* \| {value:g} % \|", page), figure
    for row in evaluation.get("leave_one_out", []):
        assert f"| {row['model never seen']} | {row['jobs']} |" in page
    for row in (*evaluation.get("contradictions", []), *evaluation.get("orderings", [])):
        assert f"| {' | '.join(map(str, row.values()))} |" in page
    for row in (*evaluation.get("by_stack", []), *evaluation.get("by_family", [])):
        assert f"| {' | '.join(map(str, row.values()))} |" in page


@pytest.mark.parametrize("version", registry.RELEASED)
def test_required_figures_are_met(version):
    card = json.loads((registry.MODELS / version / "card.json").read_text())["evaluation"]
    same_decision, same_minimum, harmful, sweep, *never = card["figures"].values()
    assert same_decision >= 99.5
    assert same_minimum >= 99
    assert harmful <= 0.1
    assert sweep >= 99.5
    assert never and not any(never)
    if version == "1.1.0":
        measured = card["measured"]
        assert len(never) == 5
        assert measured["runs answered with at most their GPUs"] == measured["runs"]
        assert measured["doublings above a frontier said to fit"] == 0
    else:
        assert card["contradictions"] and not any(row["found"] for row in card["contradictions"])
        groups = [*card["by_stack"], *card["by_family"]]
        assert groups and all(row["same decision %"] >= 99.5 and row["impossible %"] == 0 for row in groups)


@pytest.mark.parametrize(("document", "most"), [(ROOT / "README.md", 150), (registry.MODELS / "README.md", 100)])
def test_what_a_reader_sees_first_is_short(document, most):
    assert len(document.read_text(encoding="utf-8").splitlines()) <= most


def test_the_table_of_what_settings_buy_is_what_the_version_answers():
    """All points of sweep/examples/stacks.yaml, answered without ado."""
    space = yaml.safe_load((ROOT / "sweep" / "examples" / "stacks.yaml").read_text(encoding="utf-8"))["entitySpace"]
    values = {dimension["identifier"]: dimension["propertyDomain"]["values"] for dimension in space}
    jobs = pd.DataFrame(itertools.product(*values.values()), columns=list(values))
    answers = recommend(jobs)
    gpus = (answers["gpus"] * answers["workers"]).set_axis(pd.MultiIndex.from_frame(jobs))
    text = (ROOT / "sweep" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `([\w-]+)` \| `([\w-]+)` \| ([\d |]+) \|$", text, re.MULTILINE)
    assert {row[0] for row in rows} == {field for field, several in values.items() if len(several) > 1} - set(POINT)
    for field, before, after, figures in rows:
        one, other = gpus.xs(before, level=field), gpus.xs(after, level=field)
        both = pd.DataFrame({"one": one, "other": other}).dropna()
        difference = both["other"] - both["one"]
        counts = [
            len(one),
            one.count(),
            other.count(),
            *((f(difference, 0)).sum() for f in (np.less, np.equal, np.greater)),
        ]
        assert figures == " | ".join(map(str, [*counts, both["one"].sum(), both["other"].sum()])), field


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_between_documents_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


# --- commands ---------------------------------------------------------------------------------------------------------

ADO_1_ALONE = "ado show entities space --use-latest -o csv --output-file measurements.csv"  # test_ado_versions.py
PROGRAMS = "ado|ado-autoconf|make|pip|run_experiment"
EXAMPLES = [*ROOT.glob("examples/*.yaml"), *ROOT.glob("sweep/examples/*.yaml")]
SOURCES = [*DOCUMENTS, *EXAMPLES, *(ROOT / "autoconf" / "cli").glob("*.py")]


def commands(source: Path) -> Iterator[str]:
    """The commands of a document's code, of an example's comments, and of the help's examples, in their order."""
    text = source.read_text(encoding="utf-8")
    if source.suffix == ".md":
        for block, inline in re.findall(rf"```bash\n(.*?)```|`((?:{PROGRAMS})\s[^`]+)`", text, re.DOTALL):
            yield from [line for line in block.splitlines() if line.strip()] or [inline]
    else:
        yield from re.findall(rf"^ *[#$] +((?:{PROGRAMS}) .+)$", text, re.MULTILINE)


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AdoContext:
    """An ado of its own, in a folder with the examples and with the tables that commands read."""
    for name in ("examples", "sweep"):
        (tmp_path / name).symlink_to(ROOT / name)
    jobs = pd.DataFrame(
        {"model_name": "llama-7b", "method": ["full", "lora"], "gpu_model": ["L40S", "NVIDIA-A100-80GB-PCIe"],
         "tokens_per_sample": 512, "batch_size": 8}
    )  # fmt: skip
    answers = pd.concat([jobs, recommend(jobs)], axis=1)
    measurements = answers.assign(optim="adamw_torch", loss="full", gradient_checkpointing="non-reentrant")
    for name, table in {"jobs": jobs, "answers": answers, "measurements": measurements}.items():
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    monkeypatch.chdir(tmp_path)
    return AdoContext(tmp_path / "ado")


def check(command: str, context: AdoContext) -> None:
    """Run a command; of one that would take minutes, check that all its words are understood.

    Raises:
        AssertionError: it does not run.
    """
    program, *arguments = shlex.split(command, comments=True)
    match program:
        case "ado":
            if "--use-latest" in arguments and not (context.folder / "databases").exists():
                context.ado("create", "space", "-f", "sweep/examples/space.yaml")
            context.ado(*arguments, *(["--dry-run"] if arguments[:2] == ["create", "operation"] else []))
        case "ado-autoconf":
            result = CliRunner().invoke(cli.app, arguments)
            if arguments[0] in ("trace", "train") and "--help" not in arguments:  # test_your_own.py has the files
                assert (result.exit_code, "No such file" in result.output) == (2, True), f"{command}: {result.output}"
            else:
                assert result.exit_code == 0, f"{command}: {result.output}"
        case "run_experiment":  # tests/test_make_run.py runs the example
            result = CliRunner().invoke(run_experiment.app, [*arguments, "--help"])
            assert result.exit_code == 0 and Path(arguments[-1]).exists(), f"{command}: {result.output}"
        case "make" | "pip":
            words = ["make", "-n", *arguments] if program == "make" else [sys.executable, "-m", "pip", *arguments, "-h"]
            done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, f"{command}: {done.stderr}"
        case _:
            raise AssertionError(f"{command}: nobody knows how to check {program}")


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_of_the_documents_runs(source: Path, context: AdoContext) -> None:
    for command in commands(source):
        if command != ADO_1_ALONE or importlib.metadata.version("ado-core").startswith("1."):
            check(command, context)


def test_the_documents_have_commands() -> None:
    found = [command for source in SOURCES for command in commands(source)]
    assert ADO_1_ALONE in found
    for program in PROGRAMS.split("|"):
        assert [command for command in found if command.split()[0] == program], program


@pytest.mark.parametrize(
    "command",
    [
        "ado describe operator batched_sweep",
        "ado create space --use-newest -f sweep/examples/space.yaml",
        "ado create operation -f sweep/examples/none.yaml",
        "ado create operation -f sweep/examples/operation.yaml --use-latest room",
        "ado-autoconf answer",
        "ado-autoconf recommend --csv jobs.csv --colour",
        "run_experiment --quickly examples/simple.yaml",
        "run_experiment examples/none.yaml",
        "make coffee",
        "pip instal .",
        "pip install --quick .",
        "tune-kernel --all",
    ],
)
def test_a_command_that_does_not_run_is_found(command: str, context: AdoContext) -> None:
    with pytest.raises(AssertionError):
        check(command, context)


def test_the_python_of_the_documents_gives_what_stands_below_it(context: AdoContext) -> None:
    """Where comments below a block's last expression say what it gives; of fractions as many digits as two."""
    shown = 0
    for document in DOCUMENTS:
        for block in re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL):
            names = {"jobs": pd.read_csv("jobs.csv")}
            *before, last = ast.parse(block).body
            exec(compile(ast.Module(before, []), document.name, "exec"), names)
            given = eval(compile(ast.Expression(last.value), document.name, "eval"), names)
            comment = " ".join(re.findall(r"^# +(.*)$", "\n".join(block.splitlines()[last.end_lineno :]), re.MULTILINE))
            if comment:
                assert comment == re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):.2f}", repr(given))
                shown += 1
    assert shown >= 2


def test_the_readme_shows_the_answer_to_its_question() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (question, shown), (explained, why) = re.findall(
        r"```bash\n(ado-autoconf recommend [^\n]*)\n```\n\n```text\n(.*?)```", text, re.DOTALL
    )
    assert explained == f"{question.removesuffix(' --max-gpus 2')} --sharding fsdp2 --explain"
    assert CliRunner().invoke(cli.app, shlex.split(explained)[1:]).stdout.endswith(f"\n{why}")

    def answer_to(*more: str) -> dict[str, Any]:
        return json.loads(CliRunner().invoke(cli.app, [*shlex.split(question)[1:], *more, "--json"]).stdout)

    answer, sharded = answer_to(), answer_to("--sharding", "fsdp2")
    expected = [f"{field} {answer[field]}" for field in ("can_recommend", "reason", "training_stack")]
    assert " ".join(shown.split()) == " ".join(expected)
    assert (
        f"With `--sharding fsdp2` the answer is `gpus` {sharded['gpus']}, `workers` {sharded['workers']}, "
        f"for the stack *{sharded['training_stack']}*" in text
    )
