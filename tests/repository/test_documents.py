"""The documents agree with the versions, and every command in them runs."""

import importlib.metadata
import importlib.util
import itertools
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shown
import yaml
from typer.testing import CliRunner

from autoconf import cli, recommend
from autoconf.cli.plots.answer_grid import POINT
from autoconf.jobs.importers.key_table import job_keys
from autoconf.jobs.job import Workload
from autoconf.jobs.presets import presets
from autoconf.pipeline.release.evaluate import domain_section, evaluation_section, real_runs_section
from autoconf.predictor import registry

from ado.utilities import run_experiment
from ado_context import AdoContext

ROOT = Path(__file__).parents[2]
DOCUMENTS = shown.documents()
PAGES = ROOT / "docs" / "versions"
YOUR_OWN = ROOT / "docs" / "guides" / "your-model-and-cluster.md"  # test_your_own.py runs all of it


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


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
    for group in ("by_stack", "by_family", "by_setting"):
        for row in evaluation.get(group, []):
            assert f"| {' | '.join(map(str, row.values()))} |" in page


def test_the_pages_of_the_newest_version_are_those_of_make_evaluate():
    card = registry.card(registry.DEFAULT)
    assert evaluation_section(card.evaluation, card.version) in (PAGES / f"evaluation-{card.version}.md").read_text(
        encoding="utf-8"
    )
    assert domain_section(card) in (PAGES / f"domain-{card.version}.md").read_text(encoding="utf-8")
    held_out = PAGES / f"evaluation-{card.version}.md"
    assert real_runs_section(card.evaluation) in held_out.read_text(encoding="utf-8")


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
        groups = [*card["by_stack"], *card["by_family"], *card.get("by_setting", [])]
        assert groups and all(row["same decision %"] >= 99.5 and row["impossible %"] == 0 for row in groups)


@pytest.mark.parametrize(("document", "most"), [(ROOT / "README.md", 150), (registry.MODELS / "README.md", 100)])
def test_the_first_documents_are_short(document, most):
    assert len(document.read_text(encoding="utf-8").splitlines()) <= most


def test_the_table_of_effects_of_settings_agrees_with_the_version():
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


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_between_documents_lead_somewhere(document):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(#[^)\s]+)?\)", document.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        path = document.parent / target if target else document
        assert path.exists(), f"{document.name} links to {target}"
        if anchor:
            assert anchor.removeprefix("#") in anchors(path), f"{document.name} links to {target}{anchor}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_files_that_documents_name_exist(document):
    text = document.read_text(encoding="utf-8")
    named = re.findall(r"`((?:autoconf|benchmarks|docs|examples|sweep|tests)/[\w./-]+)`", text)
    assert [path for path in named if "NUMBER" not in path and not (ROOT / path).exists()] == []


def anchors(document: Path) -> set[str]:
    """The anchors of the headings of a document."""
    headings = re.findall(r"^#+ +(.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_the_readmes_figures_are_those_of_the_tables():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    validation = (PAGES / "validation.md").read_text(encoding="utf-8")
    compared = validation.split("<!-- measured_peaks_a100: ")[1].split("<!-- end of")[0]
    rows = re.findall(r"^\| .* \| (\d+) of \d+ \| ([\d.]+) % .* \| ([\d.]+) % .* \| ([\d.]+) % .* \|$", compared, re.M)
    count, medians, _, worst = zip(*rows, strict=True)
    least, most = sorted(medians, key=float)[:: len(medians) - 1]
    assert f"{sum(map(int, count))} peaks measured on A100s | median difference {least} to {most} %" in readme
    assert f"worst {max(worst, key=float)} %" in readme
    evaluation = (PAGES / f"evaluation-{registry.DEFAULT}.md").read_text(encoding="utf-8")
    (held_out,) = re.findall(rf"^\| model \| as version {registry.DEFAULT}: .* \| (.*) \|$", evaluation, re.MULTILINE)
    failed, finished = held_out.split(" / ")
    assert failed == "0"
    assert f"no false positive (a failed run predicted to fit), {finished} false negatives" in readme
    contradictions = registry.card(registry.DEFAULT).evaluation["contradictions"]
    assert not any(row["found"] for row in contradictions)
    assert len(contradictions) == 9 and "0 in nine kinds of pairs of 20,000 jobs" in readme


# --- the site ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hooks():
    """``docs/hooks.py``, which MkDocs loads."""
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_tables_have_everything(hooks):
    """``make docs`` puts them into the pages."""
    expected = {
        "inputs": Workload.model_fields,
        "experiments": [entry.name for entry in importlib.metadata.entry_points(group="ado.custom_experiments")],
        "stacks": [setting for preset in presets().values() for setting in preset.settings],
        "job-keys": [key for dialect in job_keys().dialects.values() for key in dialect.keys],
        "errors": ["AutoConfError", "BadInput", "IgnoredColumnWarning"],
    }
    for table, names in expected.items():
        text = hooks.TABLES[table]()
        missing = [one for one in names if f"`{one}`" not in text and f"## {one}\n" not in text]
        assert not missing, f"{table}: {missing}"
    commands_page = hooks.TABLES["cli"]()
    assert all(f"## `ado-autoconf {command.name}`" in commands_page for command in cli.app.registered_commands)


def test_every_page_is_in_the_navigation_and_every_table_on_a_page(hooks):
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]
    assert {*re.findall(r"- (?:[\w ]+: )?(\S+\.md)$", navigation, re.M)} == pages | {*hooks.PAGES.values()}
    asked = [
        block for page in pages for block in re.findall(r"<!-- generated: (.*) -->", (ROOT / "docs" / page).read_text())
    ]
    assert sorted(asked) == sorted(hooks.TABLES)


@pytest.mark.parametrize(
    ("page", "link", "leads_to"),
    [
        ("guides/ado.md", "../../examples/simple.yaml", "../repository/examples/simple.yaml"),
        ("guides/ado.md", "../../SECURITY.md", "../security.md"),
        ("index.md", "docs/quickstart.md", "quickstart.md"),
        ("versions/index.md", "../../docs/versions/validation.md", "validation.md"),
        ("guides/ado.md", "queries.md", "queries.md"),
        ("guides/ado.md", "https://example.org/", None),
    ],
)
def test_links_of_the_repository_lead_to_pages_of_the_site(hooks, page, link, leads_to):
    assert hooks._target(link, page) == leads_to


# --- commands ---------------------------------------------------------------------------------------------------------

ADO_1_ALONE = "ado show entities space --use-latest -o csv --output-file measurements.csv"  # test_ado_versions.py
PROGRAMS = "ado|ado-autoconf|make|pip|python|run_experiment"
EXAMPLES = [*ROOT.glob("examples/*.yaml"), *ROOT.glob("sweep/examples/*.yaml")]
_ALL = [
    *(document for document in DOCUMENTS if document != YOUR_OWN),
    *EXAMPLES,
    *(ROOT / "autoconf/cli").rglob("*.py"),
]


def commands(source: Path) -> Iterator[str]:
    """The commands of a document's code, of an example's comments, and of the help's examples, in their order."""
    text = source.read_text(encoding="utf-8")
    if source.suffix == ".md":
        for block, inline in re.findall(rf"```bash\n(.*?)```|(?<!`)`((?:{PROGRAMS})\s[^`]+)`", text, re.DOTALL):
            yield from [line for line in block.splitlines() if line.strip()] or [" ".join(inline.split())]
    else:
        yield from re.findall(rf"^ *[#$] +((?:{PROGRAMS}) .+)$", text, re.MULTILINE)


SOURCES = [source for source in _ALL if any(commands(source))]


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AdoContext:
    """A separate ado context, in a folder with the examples and the tables that commands read."""
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
    """Run a command; if it would take minutes, only check that its options are accepted.

    Raises:
        AssertionError: it does not run.
    """
    words = shlex.split(command, comments=True)
    program, *arguments = itertools.dropwhile(re.compile(r"[A-Z_]+=").match, words)
    match program:
        case "ado":
            if "--use-latest" in arguments and not (context.folder / "databases").exists():
                context.ado("create", "space", "-f", "sweep/examples/space.yaml")
            context.ado(*arguments, *(["--dry-run"] if arguments[:2] == ["create", "operation"] else []))
        case "ado-autoconf":
            # test_your_own.py runs those that take a minute, and completion is for a shell, which CI may have none of;
            # their words are checked before the help is printed.
            # test_replay_cli.py replays, and tests/service starts servers.
            if arguments[0] in ("trace", "train", "serve", "mcp") or "--replay" in arguments:
                arguments += ["--help"]
            elif arguments[0].startswith("--install"):
                arguments = ["--help", *arguments]
            result = CliRunner().invoke(cli.app, arguments)
            assert result.exit_code == 0, f"{command}: {result.output}"
        case "run_experiment":  # tests/test_make_run.py runs the example
            result = CliRunner().invoke(run_experiment.app, [*arguments, "--help"])
            assert result.exit_code == 0 and Path(arguments[-1]).exists(), f"{command}: {result.output}"
        case "make" | "pip":
            words = ["make", "-n", *arguments] if program == "make" else [sys.executable, "-m", "pip", *arguments, "-h"]
            done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, f"{command}: {done.stderr}"
        case "python":
            named = [word for word in arguments if ("/" in word and "://" not in word) or word.startswith("autoconf.")]
            for word in named:
                known = importlib.util.find_spec(word) if word.startswith("autoconf.") else (ROOT / word).exists()
                assert known, f"{command}: there is no {word}"
        case "ray" | "serve":  # tests/experiments/test_cluster.py starts them
            own = arguments[: arguments.index("--")] if "--" in arguments else arguments
            path = Path(sys.executable).with_name(program)
            told = subprocess.run([path, *own, "--help"], capture_output=True, text=True, timeout=600)
            assert told.returncode == 0 and all(word in told.stdout for word in own if word.startswith("--")), command
        case _:
            raise AssertionError(f"{command}: no check is known for {program}")


@pytest.mark.parametrize("source", SOURCES, ids=name)
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
        "ado-autoconf --install-complete",
        "ado-autoconf recommend --csv jobs.csv --color",
        "ado-autoconf trace examples/my-model/config.json --color",
        "run_experiment --quickly examples/simple.yaml",
        "run_experiment examples/none.yaml",
        "make coffee",
        "pip instal .",
        "pip install --quick .",
        "tune-kernel --all",
        "python -m pytest tests/none.py",
    ],
)
def test_a_command_that_does_not_run_is_found(command: str, context: AdoContext) -> None:
    with pytest.raises(AssertionError):
        check(command, context)


PYTHON = [(document, block, given) for document in DOCUMENTS if document != YOUR_OWN
          for block, given in shown.python(document.read_text(encoding="utf-8"))]  # fmt: skip
PRINTED = [(document, *pair) for document in DOCUMENTS for pair in shown.commands(document.read_text(encoding="utf-8"))
           if document != YOUR_OWN]  # fmt: skip


@pytest.mark.parametrize(("document", "block", "given"), PYTHON, ids=[name(document) for document, *_ in PYTHON])
def test_the_python_code_of_the_documents_gives_the_shown_results(document, block, given, context) -> None:
    """``python tests/helpers/shown.py`` updates the results."""
    value = shown.value(block, {"jobs": pd.read_csv("jobs.csv")})
    assert given in ("", value)


@pytest.mark.parametrize(("document", "command", "text"), PRINTED, ids=[name(document) for document, *_ in PRINTED])
def test_the_documents_show_the_output_of_commands(document, command, text, context) -> None:
    """``python tests/helpers/shown.py`` updates the outputs."""
    assert text == shown.shortened(text, shown.printed(command))


def test_the_documents_show_answers() -> None:
    assert {"README.md", "docs/quickstart.md", "docs/guides/queries.md"} <= {name(document) for document, *_ in PRINTED}
    assert len([given for *_, given in PYTHON if given]) >= 6


def test_the_sums_of_the_sweep_over_deepspeed_are_those_of_its_space() -> None:
    space = yaml.safe_load((ROOT / "sweep/examples/deepspeed.yaml").read_text(encoding="utf-8"))["entitySpace"]
    values = {each["identifier"]: each["propertyDomain"]["values"] for each in space}
    jobs = pd.DataFrame(itertools.product(*values.values()), columns=[*values])
    answers = recommend(jobs)
    needed = (answers["gpus"] * answers["workers"]).groupby(jobs["sharding"]).agg(["sum", "count"])
    found = " ".join((ROOT / "sweep/README.md").read_text(encoding="utf-8").split())
    sums = {name: int(row["sum"]) for name, row in needed.iterrows()}
    assert [*needed["count"]] == [0, 15, 15, 15, 15]  # DDP fits nowhere
    assert (
        "Summed over the 15 jobs, ZeRO-1 needs {zero1} GPUs, ZeRO-2 {zero2}, ZeRO-3 {zero3} and FSDP2 {fsdp2}.".format(
            **sums
        )
        in found
    )
