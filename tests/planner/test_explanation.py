"""Explanations: the parts of the memory, the changes that would help, and how both are drawn."""

import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from terminal import on_a_terminal
from typer.testing import CliRunner

import autoconf
from autoconf import Explanation, Recommendation, Workload, estimate, explain, recommend
from autoconf.cli.main import app
from autoconf.cli.plots import memory_bars
from autoconf.cli.plots.memory_bars import as_text, drawn, parts
from autoconf.jobs.names import key
from autoconf.jobs.queries import MIN_GPUS
from autoconf.planner.domain import pick
from autoconf.planner.runner import read_columns
from autoconf.planner.search import recommendations
from autoconf.predictor import registry

# The README's: on one GPU it does not fit, on two it does.
TWO_GPUS = {
    "model_name": "Qwen/Qwen2.5-7B-Instruct", "method": "full", "gpu_model": "H100", "tokens_per_sample": 4096,
    "batch_size": 8, "stack": "trl", "sharding": "fsdp2",
}  # fmt: skip
NO_GPUS = {**TWO_GPUS, "sharding": "ddp"}
OLD = {"model_name": "llama-7b", "method": "lora", "gpu_model": "L40S", "tokens_per_sample": 8192, "batch_size": 16,
       "model_version": "1.1.0"}  # fmt: skip


def job(fields: dict, **changes) -> Workload:
    return Workload.parse(**{**fields, **changes})


def total(found: Recommendation) -> int | None:
    return found.gpus * found.workers if found.can_recommend else None


# --- what is explained ------------------------------------------------------------------------------------------------


def random_jobs(version: str, count: int, seed: int) -> Iterator[dict]:
    domain, generator = registry.card(version).domain, np.random.default_rng(seed)
    models = generator.choice(list(domain.models), 5, replace=False)
    for _ in range(count):
        batch = generator.choice(["batch_size", "per_device_train_batch_size"], p=[0.75, 0.25])
        fields = {
            "model_name": generator.choice(models),
            "method": generator.choice(domain.methods),
            "gpu_model": generator.choice(list(domain.gpus)),
            "tokens_per_sample": int(2 ** generator.uniform(5, 14)),
            batch: int(2 ** generator.uniform(0, 6)),
            "gpus_per_worker": int(generator.choice([1, 3, 8])),
            "max_gpus": int(generator.choice([1, 5, 8])),
            "gradient_accumulation_steps": int(generator.choice([1, 4])),
            "model_version": version,
        }
        if version != "1.1.0":
            fields |= {
                "stack": generator.choice(["reference", "trl", "fms-hf-tuning"]),
                "gradient_checkpointing": generator.choice([None, "none"]),
                "optim": generator.choice([None, "adamw_torch_fused", "sgd"]),
                "torch_dtype": None if fields["method"] == "qlora" else generator.choice([None, None, "float32"]),
            }
        yield fields


def settings_to_try(fields: dict) -> Iterator[tuple[str, str | int]]:
    """Every change of a setting or the method that may be suggested."""
    stack, method = job(fields).training_stack(), key(fields["method"])
    if stack.torch_dtype == "float32":
        yield "torch_dtype", "bfloat16"
    if fields["gradient_accumulation_steps"] > 1:
        yield "gradient_accumulation_steps", 1
    for field, value, in_place_of in (
        ("loss", "chunked", ["full"]),
        ("gradient_checkpointing", "non-reentrant", ["none"]),
        ("optim", "adamw_torch_fused", ["adamw_torch"]),
        ("optim", "adamw_bnb_8bit", ["adamw_torch", "adamw_torch_fused"]),
        ("sharding", "fsdp2", ["ddp"]),
        ("method", "lora", ["full"]),
        ("method", "qlora", ["full", "lora"]),
    ):
        if (method if field == "method" else getattr(stack, field)) in in_place_of:
            yield field, value
    if method != "full":
        yield from (
            ("lora_r", rank)
            for rank in range(1, stack.lora_r)
            if stack.lora_r // rank & (stack.lora_r // rank - 1) == 0
        )


def that_help(fields: dict, below: int | None) -> list[tuple]:
    """Try each change alone: the changes that get a job a recommendation for fewer GPUs than it has."""
    domain = registry.card(fields["model_version"]).domain
    usable = {name: gpu.usable_gib for name, gpu in domain.gpus.items()}
    batch_field = next(field for field in ("batch_size", "per_device_train_batch_size") if field in fields)
    batch = fields[batch_field]
    batches = range(1, batch + fields["max_gpus"] + 1 if batch_field == "batch_size" else batch)
    asked = [
        *settings_to_try(fields),
        *((batch_field, size) for size in batches),
        ("max_gpus", domain.max_gpus),
        *(("gpu_model", name) for name in usable),
    ]
    changed = [{**fields, field: value} for field, value in asked]
    # Without the changes suggested in a table's reasons for jobs without a recommendation.
    table = {field: [one.get(field) for one in changed] for field in Workload.model_fields}
    columns, problems = read_columns(table, MIN_GPUS)
    sound = [index for index in range(len(changed)) if index not in problems]
    answers = recommendations(registry.load(fields["model_version"]), pick(columns, sound))
    totals = {index: total(said) for index, said in zip(sound, answers, strict=True) if said.can_recommend}
    found = [(*asked[index], gpus) for index, gpus in totals.items() if below is None or gpus < below]

    def of(field: str) -> list[tuple]:
        return [change for change in found if change[0] == field]

    suggested = [
        change for change in found if change[0] not in (batch_field, "lora_r", "method", "max_gpus", "gpu_model")
    ]
    suggested += sorted(of(batch_field), key=lambda change: (abs(change[1] - batch), -change[1]))[:1]
    suggested += of("lora_r")[-1:]
    suggested += of("method")
    suggested += [("max_gpus", gpus, gpus) for _, _, gpus in of("max_gpus") if below is None]
    if types := of("gpu_model"):
        fewest = min(types, key=lambda change: (change[2], usable[change[1]]))
        suggested += dict.fromkeys((fewest, min(types, key=lambda change: usable[change[1]])))
    return suggested


@pytest.mark.long
@pytest.mark.parametrize(("version", "count"), [("1.1.0", 300), ("2.0.0", 250)])
def test_exactly_the_single_changes_that_help_are_suggested_cheapest_first(version, count):
    helped, without, pairs = set(), 0, 0  # whether a job had a recommendation, and what helped it
    for fields in random_jobs(version, count, seed=7):
        found = explain(job(fields))
        single = [change for change in found.changes if change.also is None]
        said = [(change.field, change.value, change.gpus * change.workers) for change in single]
        below = total(found.recommendation)
        assert [one for one in said if one[0] != "tokens_per_sample"] == that_help(fields, below), fields
        check_sample(fields, below, [value for field, value, _ in said if field == "tokens_per_sample"])
        helped |= {(below is not None, field) for field, _, _ in said}
        for change in found.changes:
            assert not (change.also and single)
            both = {one.field: one.value for one in (change, change.also) if one}
            changed = recommend(job(fields, **both))
            assert (changed.gpus, changed.workers) == (change.gpus, change.workers)
            pairs += change.also is not None
        without += not said
    both = {"batch_size", "method", "gpu_model"}
    assert helped >= {(recommended, field) for recommended in (False, True) for field in both}
    expected = {"gradient_accumulation_steps", "per_device_train_batch_size", "max_gpus", "tokens_per_sample"}
    if version == "2.0.0":
        expected |= {"torch_dtype", "loss", "optim", "sharding", "gradient_checkpointing"}
    assert {field for _, field in helped} >= expected
    assert (True, "max_gpus") not in helped
    assert without > count / 10
    assert pairs > 5


def check_sample(fields: dict, below: int | None, suggested: list[int]) -> None:
    """The suggested sample is the longest that helps; none is suggested if none helps."""
    limit = {} if below is None else {"max_gpus": below - 1}
    (longest,) = suggested or [0]
    assert longest < fields["tokens_per_sample"]
    if below != 1:
        tried = {
            tokens: recommend(job({**fields, "tokens_per_sample": tokens}, **limit))
            for tokens in (longest, longest + 1)
            if tokens
        }
        assert [answer.can_recommend for answer in tried.values()] == [1, 0][-len(tried) :], fields


def test_a_recommendation_holds_the_changes_that_its_reason_names():
    found = recommend(job(NO_GPUS))
    named = [(change.field, change.before, change.value) for change in found.changes]
    assert named[:2] == [("torch_dtype", "float32", "bfloat16"), ("sharding", "ddp", "fsdp2")]
    why = explain(job(NO_GPUS)).why
    assert found.reason == "; ".join([why, *map(str, found.changes)]) and "would fit" not in why
    assert recommend(job(TWO_GPUS)).changes == ()


@pytest.mark.parametrize(
    ("fields", "counts", "fits"),
    [
        (TWO_GPUS, [1, 2], [0, 1]),
        ({**TWO_GPUS, "model_name": "llama-13b", "batch_size": 9, "gpus_per_worker": 9}, [3, 9], [0, 1]),
        ({**TWO_GPUS, "model_name": "llama-13b", "tokens_per_sample": 16384, "batch_size": 12, "gpus_per_worker": 3},
         [6, 12], [0, 1]),  # ten and eleven divide 12 no more than they split evenly
        ({**TWO_GPUS, "method": "qlora", "tokens_per_sample": 8192, "batch_size": 64}, [4, 8], [0, 1]),
        ({**TWO_GPUS, "method": "lora"}, [1], [1]),
        (NO_GPUS, [8], [0]),
        ({**NO_GPUS, "batch_size": 7, "max_gpus": 6}, [1], [0]),
    ],
)  # fmt: skip
def test_parts_are_shown_for_the_recommended_number_and_the_next_smaller_one(fields, counts, fits):
    workload = job({**fields, "max_gpus": fields.get("max_gpus", 16)}) if counts != [8] else job(fields)
    found = explain(workload)
    assert found.recommendation == recommend(workload)
    assert found.at == {count: estimate(workload, count) for count in found.at}
    assert (list(found.at), [held.fits for held in found.at.values()]) == (counts, fits)


def test_outside_the_domain_there_is_nothing_to_explain():
    for fields in ({**TWO_GPUS, "model_name": "gpt-9"}, {**TWO_GPUS, "model_version": "0.0.1"}):
        found = explain(job(fields))
        assert found == Explanation(recommend(job(fields)), {}, ())
        assert found.why == found.recommendation.reason != ""


def test_a_version_without_estimates_says_so_and_still_suggests_changes():
    found = explain(job(OLD))
    assert (found.recommendation.gpus, list(found.at)) == (4, [2, 4])
    assert {held.reason for held in found.at.values()} == {"version 1.1.0 has no estimates; the newest is 3.0.0"}
    assert drawn(found) == {}
    assert [change.field for change in found.changes] == ["batch_size", "tokens_per_sample", "gpu_model"]
    newest = {field: value for field, value in OLD.items() if field != "model_version"}
    assert explain(job(newest), "1.1.0") == found


def test_only_a_job_can_be_explained():
    with pytest.raises(TypeError, match="job: must be a Workload, got DataFrame"):
        explain(pd.DataFrame([TWO_GPUS]))


# --- how it is drawn --------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Explain a job by the command in an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)
    return lambda fields, *more: CliRunner().invoke(app, ["recommend", *options(fields), "--explain", *more])


def options(fields: dict) -> list[str]:
    return [f"--{field.replace('_', '-')}={value}" for field, value in fields.items()]


@pytest.mark.parametrize("fields", [TWO_GPUS, NO_GPUS, {**TWO_GPUS, "method": "qlora", "batch_size": 32}])
@pytest.mark.parametrize("width", [40, 80, 133])
def test_bars_are_end_to_end_and_cross_the_line_if_a_job_does_not_fit(fields, width):
    found = explain(job(fields))
    lines = [line.plain for line in as_text(found, width, plain=True)]
    (of_usable,) = {line.index("|") for line in lines if line.startswith("usable")}
    for count, held in found.at.items():
        at = next(i for i, line in enumerate(lines) if line.startswith(f"on {'each of ' * (count > 1)}{count} GPU"))
        rows = lines[at + 1 : at + 1 + len(parts(held))]
        assert [row.split()[:2] for row in rows] == [[name, f"{part:.1f}"] for name, part in parts(held).items()]
        assert {row[of_usable] for row in rows} == {"|"} and max(map(len, rows)) <= width
        bars_of = [[i for i, cell in enumerate(row) if cell == "#"] for row in rows]
        ends = [(cells[0], cells[-1]) for cells in bars_of if cells]
        assert all(0 <= first - last <= 2 for (_, last), (first, _) in pairwise(ends))
        assert (ends[-1][1] < of_usable) == (held.needed_memory_gib < held.usable_memory_gib)
        cells_per_gib = (of_usable - lines[at + 1].index("#")) / held.usable_memory_gib
        lengths = [part * cells_per_gib for part in parts(held).values()]
        assert [len(cells) for cells in bars_of] == pytest.approx(lengths, abs=2)


def test_without_space_for_bars_only_numbers_are_shown():
    lines = [line.plain for line in as_text(explain(job(TWO_GPUS)), 24, plain=False)]
    assert [line for line in lines if line.startswith("optimizer")] == [
        "optimizer        56.7",
        "optimizer        28.4",
    ]
    assert not set("".join(lines)) & set("█│#|")


def test_without_a_terminal_it_is_plain_text(run):
    result = run(TWO_GPUS)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.isascii()
    assert re.search(r"training_stack +trl with sharding=fsdp2\n", result.stdout)
    assert "on 1 GPU: needs 153.7 GiB of 79.1, does not fit (probability 0.00, 0.90 required)\n" in result.stdout
    assert "on each of 2 GPUs: needs 75.3 GiB of 79.1, fits (probability 1.00, 0.90 required)\n" in result.stdout
    assert (
        "Single changes that lead to fewer GPUs, cheapest first:\n  torch_dtype=bfloat16 would fit on 1 GPU\n"
        in result.stdout
    )


def test_without_a_recommendation_each_change_is_suggested_once(run):
    stdout = run(NO_GPUS).stdout
    assert "on each of 8 GPUs: needs 170.0 GiB of 79.1, does not fit" in stdout
    assert "Single changes that would get a recommendation, cheapest first:\n  torch_dtype=bfloat16 would" in stdout
    assert stdout.count("sharding=fsdp2 would fit") == 1


def test_where_no_change_helps_it_says_so(run):
    stubborn = {**NO_GPUS, "model_name": "llama3.1-405b", "gpu_model": "T4", "sharding": "fsdp2", "batch_size": 1,
                "model_version": "2.0.0"}  # fmt: skip
    assert explain(job(stubborn)).changes == ()
    assert run(stubborn).stdout.endswith("\nNone of the single changes tried would get a recommendation.\n")
    assert "change" not in run({**TWO_GPUS, "method": "lora"}).stdout  # one GPU
    assert "change" not in run({**TWO_GPUS, "model_name": "gpt-9"}).stdout  # outside the domain


def test_a_version_without_estimates_is_no_failure(run):
    for more in ([], ["--output=picture.png"]):
        result = run(OLD, *more)
        assert result.exit_code == 0
        assert "\nversion 1.1.0 has no estimates; the newest is 3.0.0\n" in result.stdout
        assert re.search(r"\n *gpus +4\n", result.stdout)
        assert "gpu_model=NVIDIA-H100-PCIe would fit on 2 GPUs" in result.stdout
    assert result.stderr == "picture.png: not written, because there is nothing to draw\n"
    assert not Path("picture.png").exists()


@pytest.mark.parametrize("fields", [TWO_GPUS, NO_GPUS, OLD, {**TWO_GPUS, "model_name": "gpt-9"}])
def test_json_has_the_answer_and_what_python_gives(run, fields):
    said, found = json.loads(run(fields, "--json").stdout), explain(job(fields))
    plain = json.loads(CliRunner().invoke(app, ["recommend", *options(fields), "--json"]).stdout)
    assert {name: said[name] for name in plain} == plain
    at = [{"number_gpus": count, **asdict(held)} for count, held in found.at.items()]
    assert said["at"] == json.loads(json.dumps(at))
    assert said["changes"] == [asdict(change) for change in found.changes]
    run(fields, "--json", "--output=said.json")
    assert json.loads(Path("said.json").read_text()) == said


@pytest.mark.long
def test_a_terminal_gets_colors_and_no_line_that_is_too_long(tmp_path):
    arguments = ["recommend", *options(TWO_GPUS), "--explain"]
    colors = re.compile(r"\x1b\[[\d;]*m")
    text = on_a_terminal("stdout", arguments, tmp_path, 50, TERM="xterm-256color")
    lines = colors.sub("", text).splitlines()
    assert max(map(len, lines)) <= 50
    assert "█" in text and "38;5" in text
    assert [line.split()[1] for line in lines if line.startswith("optimizer")] == ["56.7", "28.4"]
    without = on_a_terminal("stdout", arguments, tmp_path, NO_COLOR="1")
    assert "█" in without and "38;5" not in without
    assert (tmp_path / "stderr").read_text() == ""


@pytest.mark.parametrize(("ending", "starts"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_a_picture_is_written_in_the_format_that_its_name_says(run, ending, starts):
    result = run(TWO_GPUS, f"--output=picture.{ending}")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert Path(f"picture.{ending}").read_bytes().startswith(starts)


@pytest.mark.parametrize("fields", [TWO_GPUS, NO_GPUS])
def test_a_picture_shows_the_estimate(fields):
    found = explain(job(fields))
    figure = memory_bars.picture(job(fields), found)
    (axes,) = figure.axes
    widths = [patch.get_width() for patch in axes.patches]
    assert widths == pytest.approx([part for held in found.at.values() for part in parts(held).values()])
    starts = [patch.get_x() for patch in axes.patches]
    for row, held in enumerate(found.at.values()):
        of_row = slice(row * len(parts(held)), (row + 1) * len(parts(held)))
        assert starts[of_row] == pytest.approx(np.cumsum([0, *widths[of_row][:-1]]))
        assert sum(widths[of_row]) == pytest.approx(held.needed_memory_gib)
    for line in axes.collections:
        assert {x for segment in line.get_segments() for x, _ in segment} == {79.1}
    assert len({patch.get_facecolor() for patch in axes.patches}) == len(parts(next(iter(found.at.values()))))
    figure.savefig(io.BytesIO(), format="png")
    canvas = figure.bbox
    written = " ".join(text.get_text() for text in (*figure.texts, *axes.texts))
    for text in (*figure.texts, *axes.texts):
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= canvas.width and box.y1 <= canvas.height, text.get_text()
    for change in found.changes:
        assert str(change) in written
    assert job(fields).stack_name() in written
    if found.why:
        assert found.why in re.sub(" +", " ", written)


@pytest.mark.parametrize("tokens_per_sample", range(8000, 9000, 200))  # the line moves through the reserve's number
def test_no_number_is_crossed_by_the_line_of_usable_memory(tokens_per_sample):
    crossing = job({**TWO_GPUS, "method": "full", "tokens_per_sample": tokens_per_sample})
    figure = memory_bars.picture(crossing, explain(crossing))
    figure.draw_without_rendering()
    (axes,) = figure.axes
    line, _ = axes.transData.transform((79.1, 0))
    numbers = [text.get_window_extent() for text in axes.texts if re.fullmatch(r"[\d.]+", text.get_text())]
    assert len(numbers) >= 8
    assert not any(box.x0 <= line <= box.x1 for box in numbers)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*options(TWO_GPUS), "--output=why.txt"], "why.txt: a picture's name must end in .png, .svg or .pdf"),
        (["--csv=jobs.csv"], "--explain: for one job only"),
        ([*options(TWO_GPUS), "--batch-size=0"], "batch_size: must be a whole number >= 1, got '0'"),
    ],
)
def test_an_unsupported_explanation_is_bad_input(arguments, message):
    result = CliRunner().invoke(app, ["recommend", *arguments, "--explain"])
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"{message}\n")


def test_the_package_has_what_an_explanation_is_made_of():
    assert {"Estimate", "Explanation", "Recommendation", "Remedy", "explain"} <= set(autoconf.__all__)
    assert all(isinstance(change, autoconf.Remedy) for change in explain(job(TWO_GPUS)).changes)
