"""`ado-autoconf plot` draws the same picture from our answers and from exports of the real ado."""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from matplotlib.colors import to_rgba
from matplotlib.image import imread
from typer.testing import CliRunner

from autoconf import recommend
from autoconf.cli.main import app
from autoconf.cli.plots.answer_grid import (
    MISSING,
    NO_RECOMMENDATION,
    POINT,
    SEPARATOR,
    SETTINGS,
    Chart,
    chart,
    choose,
    option,
    points,
)
from autoconf.cli.plots.heatmap import draw
from autoconf.jobs.tables import read_table
from autoconf.min_gpu_recommender import min_gpu_recommender

from ado.schema.observed_property import ObservedPropertyValue
from ado.schema.result import ValidMeasurementResult
from ado_context import AdoContext

MODELS, METHODS = ["llama-13b", "llama-7b"], ["lora", "full"]
TOKENS, BATCHES = [1024, 16384, 131072], [1, 64]
A100, L40S = "NVIDIA-A100-80GB-PCIe", "L40S"
SPACE = {"model_name": MODELS, "method": METHODS, "gpu_model": [A100], "tokens_per_sample": TOKENS,
         "batch_size": BATCHES, "model_version": ["1.1.0"]}  # fmt: skip


def points_of(space: dict[str, list[Any]]) -> list[tuple[Any, ...]]:
    return list(itertools.product(*space.values()))


def answers_of(space: dict[str, list[Any]]) -> pd.DataFrame:
    jobs = pd.DataFrame(points_of(space), columns=list(space))
    return pd.concat([jobs, recommend(jobs)], axis=1)


def written(answers: pd.DataFrame, folder: Path) -> Path:
    answers.to_csv(folder / "answers.csv", index=False)
    return folder / "answers.csv"


def chart_of(file: Path, **wanted: str) -> Chart:
    return chart(choose(points(read_table(str(file))), wanted)[0])


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["plot", *map(str, arguments)])


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """ado's exports of the space, every point measured once, in a given property format.

    The experiment is called here and its results stored by hand, which saves the half minute that Ray takes.
    """
    context = AdoContext(tmp_path_factory.mktemp("plot") / "ado")
    identifier = context.create_space(
        {
            "entitySpace": [{"identifier": k, "propertyDomain": {"values": v}} for k, v in SPACE.items()],
            "experiments": [
                {"actuatorIdentifier": "custom_experiments", "experimentIdentifier": "min_gpu_recommender"}
            ],
        }
    )
    space = context.space(identifier)
    (experiment,) = space.measurementSpace.experiments
    entities = [space.entity_for_point(dict(zip(SPACE, point, strict=True))) for point in points_of(SPACE)]
    for entity in entities:
        answer = min_gpu_recommender(**{v.property.identifier: v.value for v in entity.constitutive_property_values})
        values = [
            ObservedPropertyValue(property=observed, value=answer[observed.targetProperty.identifier])
            for observed in experiment.observedProperties
            if observed.targetProperty.identifier in answer
        ]
        entity.add_measurement_result(ValidMeasurementResult(entityIdentifier=entity.identifier, measurements=values))
    space.sample_store.add_external_entities(entities)

    def export(form: str) -> Path:
        file = context.folder / f"{form}.csv"
        arguments = ["-o", "csv", "--output-file", str(file), "--property-format", form, "--include", "matching"]
        context.ado("show", "measurements", "space", identifier, *arguments)
        return file

    return export


def test_our_answers_and_both_formats_of_ado_give_the_same_chart(
    exports: Callable[[str], Path], tmp_path: Path
) -> None:
    answers = answers_of(SPACE)
    ours = chart_of(written(answers, tmp_path))
    assert (ours.tokens, ours.batches) == (TOKENS, BATCHES)
    assert (ours.groups, ours.members) == (["llama-7b", "llama-13b"], ["full", "lora"])
    for form in ("target", "observed"):
        theirs = chart_of(exports(form))
        assert (theirs.tokens, theirs.batches) == (ours.tokens, ours.batches)
        assert (theirs.groups, theirs.members, theirs.subtitle) == (ours.groups, ours.members, ours.subtitle)
        for panel, totals in ours.panels.items():
            np.testing.assert_array_equal(theirs.panels[panel], totals)
        assert run(exports(form), "-o", tmp_path / f"{form}.png").exit_code == 0
        (reasons,) = (column for name, column in pd.read_csv(exports(form)).items() if name.endswith("reason"))
        # The answer about one job suggests more changes than a row of a table.
        both = (reasons.dropna(), answers["reason"])
        theirs_said, ours_said = (sorted(reason.split("; ")[0] for reason in some if reason) for some in both)
        assert theirs_said == ours_said and ours_said
    assert (tmp_path / "target.png").read_bytes() == (tmp_path / "observed.png").read_bytes()


def test_a_panel_holds_gpus_in_total(tmp_path: Path) -> None:
    answers = answers_of({**SPACE, "model_name": ["llama-7b"], "method": ["full"], "gpus_per_worker": [2]})
    (totals,) = chart_of(written(answers, tmp_path)).panels.values()
    for row in answers.fillna(0).itertuples():
        expected = row.gpus * row.workers if row.can_recommend else NO_RECOMMENDATION
        assert totals[BATCHES.index(row.batch_size), TOKENS.index(row.tokens_per_sample)] == expected
    assert {NO_RECOMMENDATION, 1} < set(totals.ravel())


def test_points_that_the_file_lacks_are_missing(tmp_path: Path) -> None:
    answers = answers_of({**SPACE, "model_name": ["llama-7b"]}).drop(index=[0, 5])
    panels = chart_of(written(answers, tmp_path)).panels
    assert panels["llama-7b", "lora"][0, 0] == MISSING
    assert panels["llama-7b", "lora"][1, 2] == MISSING
    assert (panels["llama-7b", "full"] != MISSING).all()


def test_of_several_gpu_types_the_first_is_drawn_unless_another_is_wanted(tmp_path: Path) -> None:
    file = written(answers_of({**SPACE, "gpu_model": [L40S, A100]}), tmp_path)
    result = run(file, "-o", tmp_path / "first.png")
    assert result.exit_code == 0
    assert result.stderr == (
        f"{file}: gpu_model: drawing 'L40S', the first of 'L40S', '{A100}'; choose with --gpu-model\n"
    )
    result = run(file, "-o", tmp_path / "second.png", "--gpu-model", A100, "--model-version", "1.1.0")
    assert (result.exit_code, result.stderr) == (0, "")
    assert chart_of(file).subtitle.startswith("L40S  ·  version 1.1.0  ·  ")
    assert chart_of(file, gpu_model=A100).subtitle.startswith(f"{A100}  ·  version 1.1.0  ·  ")
    assert (tmp_path / "first.png").read_bytes() != (tmp_path / "second.png").read_bytes()


@pytest.mark.parametrize(
    ("more", "considered"),
    [
        ({}, 8),
        ({"max_gpus": ""}, 8),
        ({"max_gpus": "4"}, 4),
        ({"max_gpus": "128"}, 128),
        ({"max_gpus": "128", "model_version": "1.1.0"}, 64),
        ({"experiment_id": "custom_experiments.min_gpu_recommender"}, 8),
        ({"experiment_id": "custom_experiments.min_gpu_recommender-gpus_per_worker.4-max_gpus.32"}, 32),
        ({"experiment_id": "custom_experiments.min_gpu_recommender-max_gpus.16-model_version.1.1.0"}, 16),
    ],
)
def test_a_picture_says_how_many_gpus_were_considered(tmp_path: Path, more: dict[str, str], considered: int) -> None:
    job = {**dict(zip(POINT, ["m", "lora", A100, "512", "16"], strict=True)), **more, "can_recommend": "0"}
    (tmp_path / "a.csv").write_text(f"{','.join(job)}\n{','.join(job.values())}\n")
    assert f"  ·  at most {considered} GPUs considered  ·  " in chart_of(tmp_path / "a.csv").subtitle


def test_a_picture_says_which_stack_it_is_of_and_how_to_choose_another(tmp_path: Path) -> None:
    name = "custom_experiments.min_gpu_recommender"
    rows = [f"m,lora,{A100},512,16,{name}{more},1,8,1" for more in ("", "-stack.fms-hf-tuning-optim.sgd-max_gpus.64")]
    (tmp_path / "a.csv").write_text("\n".join([f"{','.join(POINT)},experiment_id,can_recommend,gpus,workers", *rows]))
    assert "stack" not in chart_of(tmp_path / "a.csv", stack="reference").subtitle
    assert chart_of(tmp_path / "a.csv", optim="SGD").subtitle.endswith("  ·  stack fms-hf-tuning  ·  optim sgd")


def test_panels_can_differ_in_any_setting(tmp_path: Path) -> None:
    """One model under several stacks: the last field varies within a group, all else as in other pictures."""
    columns = [*POINT, "stack", "optim", "can_recommend", "gpus", "workers"]
    stacks, optims = ["trl", "reference"], ["", "sgd"]
    rows = [
        [model, "lora", A100, 512, 16, stack, optim, 1, 1 + index, 1]
        for model in ("m", "n")
        for index, (stack, optim) in enumerate(itertools.product(stacks, optims))
    ]
    file = written(pd.DataFrame(rows, columns=columns), tmp_path)
    fields = ("stack", "optim")
    chosen, notes = choose(points(read_table(str(file))), {}, fields)
    drawn = chart(chosen, fields)
    assert (drawn.groups, drawn.members) == (["reference", "trl"], ["optim by default", "sgd"])
    assert {panel: totals.item() for panel, totals in drawn.panels.items()} == {
        ("trl", "optim by default"): 1, ("trl", "sgd"): 2, ("reference", "optim by default"): 3, ("reference", "sgd"): 4
    }  # fmt: skip
    assert notes == ["model_name: drawing 'm', the first of 'm', 'n'; choose with --model-name"]
    assert drawn.subtitle.startswith(f"m  ·  lora  ·  {A100}  ·  ")
    assert "optim" not in drawn.subtitle and "stack" not in drawn.subtitle

    result = run(file, "-o", tmp_path / "a.png", "--panels", "model_name, stack", "--optim", "sgd")
    assert (result.exit_code, result.stderr) == (0, "")
    alone = chart(*choose(points(read_table(str(file))), {"model_name": "n", "optim": "sgd"}, ["stack"])[:1], ["stack"])
    assert (alone.groups, alone.members) == ([""], ["reference", "trl"])


def test_panels_of_four_settings_have_one_column_for_each_value_of_the_second(tmp_path: Path) -> None:
    """The two losses of an optimizer are in one column, and no loss is labeled "full"."""
    fields = ("stack", "optim", "loss", "gradient_checkpointing")
    values = [["trl", "reference"], ["adamw_bnb_8bit", "adamw_torch"], ["chunked", "full"], ["none", "non-reentrant"]]
    rows = [["m", "full", A100, 512, 16, *of, 1, 1, 1] for of in itertools.product(*values)]
    columns = [*POINT, *fields, "can_recommend", "gpus", "workers"]
    file = written(pd.DataFrame(rows, columns=columns), tmp_path)
    drawn = chart(choose(points(read_table(str(file))), {}, fields)[0], fields)
    assert drawn.groups == [
        SEPARATOR.join((stack, optim, loss))
        for stack in ("reference", "trl")
        for loss in ("all logits", "chunked loss")
        for optim in ("adamw_torch", "adamw_bnb_8bit")
    ]
    assert drawn.members == ["no checkpointing", "non-reentrant checkpointing"]
    axes = {axes.get_position().x0 for axes in draw(drawn).axes}
    assert len(axes) == 2 * len(drawn.members)


@pytest.mark.parametrize(
    ("panels", "message"),
    [
        ("color", "panels: 'color' is none of experiment_id, model_name, method, gpu_model, "),
        ("stack,stack", "panels: 'stack,stack' has one of them twice\n"),
        ("stack,", "panels: '' is none of "),
        ("model_name,loss", "a.csv: panels: no answer says its loss\n"),
    ],
)
def test_panels_of_settings_without_answers_are_bad_input(tmp_path: Path, panels: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(f"{','.join(POINT)},can_recommend,gpus,workers\nm,lora,g,512,1,1,1,1\n")
    result = run(tmp_path / "a.csv", "-o", tmp_path / "a.png", "--panels", panels)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "a.png").exists()


def test_of_several_limits_the_one_wanted_is_drawn(tmp_path: Path) -> None:
    name = "custom_experiments.min_gpu_recommender"
    rows = [f"m,lora,{A100},512,16,{name},1,8,1", f"m,lora,{A100},512,16,{name}-max_gpus.64,1,4,4"]
    (tmp_path / "a.csv").write_text("\n".join([f"{','.join(POINT)},experiment_id,can_recommend,gpus,workers", *rows]))
    for limit, total in (("8", 8), ("64", 16)):
        (totals,) = chart_of(tmp_path / "a.csv", max_gpus=limit).panels.values()
        assert totals.tolist() == [[total]]


def test_cells_of_ado_that_are_lists_or_empty(tmp_path: Path) -> None:
    header = f"{','.join(POINT)},e-can_recommend,e-gpus,e-workers\n"
    cells = [(1, '"[1, 1]","[2.0, 2.0]","[1, 1]"'), (2, '"[0, 0]","[nan, nan]",'), (4, ",,"), (8, "1.0,4.0,2.0")]
    lines = (f"m,lora,{A100},512,{batch},{answer}\n" for batch, answer in cells)
    (tmp_path / "a.csv").write_text(header + "".join(lines))
    (totals,) = chart_of(tmp_path / "a.csv").panels.values()
    assert totals.ravel().tolist() == [2, NO_RECOMMENDATION, MISSING, 8]


def test_an_export_without_any_recommendation_has_no_gpus_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"{','.join(POINT)},can_recommend\nm,lora,{A100},512,1,0\n")
    (totals,) = chart_of(tmp_path / "a.csv").panels.values()
    assert totals.tolist() == [[NO_RECOMMENDATION]]


@pytest.mark.parametrize(
    ("lines", "arguments", "message"),
    [
        (["x,lora,g,512,1"], [], ", line 2: can_recommend: must be 0 or 1, got '2'"),
        (["x,lora,g,512,0"], [], ", line 2: batch_size: must be a whole number >= 1, got '0'"),
        (
            ["x,lora,g,1e400,1"],
            [],
            ", line 2: tokens_per_sample: must be a whole number <= 9007199254740992, got '1e400'",
        ),
        (["x,,g,512,1"], [], ", line 2: method: is required"),
        ([], [], ": there are no answers to draw"),
        (["x,lora,g,512,1"], ["--gpu-model", "h"], ": gpu_model: no answer for 'h'; there are answers for 'g'"),
    ],
)
def test_a_bad_file_of_answers_is_bad_input(
    tmp_path: Path, lines: list[str], arguments: list[str], message: str
) -> None:
    file, picture = tmp_path / "answers.csv", tmp_path / "picture.png"
    ok = "1,1,1" if arguments else "2,1,1"
    file.write_text("\n".join([f"{','.join(POINT)},can_recommend,gpus,workers", *(f"{x},{ok}" for x in lines)]))
    result = run(file, "-o", picture, *arguments)
    assert (result.exit_code, result.stderr) == (2, f"{file}{message}\n")
    assert not picture.exists()


def test_more_gpus_than_can_be_counted_are_bad_input(tmp_path: Path) -> None:
    most = 2**53
    (tmp_path / "a.csv").write_text(f"{','.join(POINT)},can_recommend,gpus,workers\nm,lora,g,512,1,1,{most},{most}\n")
    result = run(tmp_path / "a.csv", "-o", tmp_path / "a.png")
    assert result.exit_code == 2
    assert result.stderr == (
        f"{tmp_path}/a.csv, line 2: gpus x workers: must be a whole number <= {most}, got {most * most}\n"
    )


def test_an_empty_setting_is_as_if_it_had_not_been_given(tmp_path: Path) -> None:
    file = written(answers_of({**SPACE, "max_gpus": [" "]}), tmp_path)
    result = run(file, "-o", tmp_path / "a.png", "--max-gpus=8", "--gpu-model=", "--model-version= ")
    assert (result.exit_code, result.stderr) == (0, "")


def test_two_answers_for_one_point_must_agree(tmp_path: Path) -> None:
    header, job = f"{','.join(POINT)},can_recommend,gpus,workers", "m,lora,g,512,1"
    (tmp_path / "a.csv").write_text("\n".join([header, f"{job},1,2,1", f"{job},1,2,1", f"{job},0,,"]))
    result = run(tmp_path / "a.csv", "-o", tmp_path / "a.png")
    assert result.exit_code == 2
    assert result.stderr == f"{tmp_path}/a.csv, line 4: m, lora, 512 tokens, batch 1: line 3 answers otherwise\n"


def test_jobs_without_answers_are_bad_input(tmp_path: Path) -> None:
    (tmp_path / "jobs.csv").write_text(",".join(POINT))
    result = run(tmp_path / "jobs.csv", "-o", tmp_path / "a.png")
    assert result.exit_code == 2
    assert "line 1: required column missing: can_recommend; the table has model_name, method" in result.stderr


@pytest.mark.parametrize(("kind", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("PDF", b"%PDF")])
def test_the_kinds_of_picture(tmp_path: Path, kind: str, start: bytes) -> None:
    file = written(answers_of(SPACE), tmp_path)
    assert run(file, "-o", tmp_path / f"picture.{kind}").exit_code == 0
    assert (tmp_path / f"picture.{kind}").read_bytes().startswith(start)
    assert run(file, "-o", tmp_path / "picture.jpg").exit_code == 2
    assert sorted(os.listdir(tmp_path)) == sorted(["answers.csv", f"picture.{kind}"])


def grid(models: int = 2, tokens: int = 5, batches: int = 6, most: int = 64) -> Chart:
    """A chart of arbitrary answers."""
    totals = np.random.default_rng(0).integers(MISSING, most, (models * 2, batches, tokens))
    names = [f"model-{index}" for index in range(models)]
    panels = dict(zip(itertools.product(names, ["full", "lora"]), totals, strict=True))
    axes = ([2 ** (9 + t) for t in range(tokens)], [b + 1 for b in range(batches)])
    return Chart("a GPU", *axes, names, ["full", "lora"], panels)


def test_a_dollar_in_a_name_is_a_dollar(tmp_path: Path) -> None:
    panels = {("$\\frac$", "$x"): np.array([[1]])}
    figure = draw(Chart("$\\frac$", [512], [1], ["$\\frac$"], ["$x"], panels))
    figure.savefig(tmp_path / "a.png")
    assert imread(tmp_path / "a.png").size


def test_the_whole_sweep_has_a_legible_panel_for_each_model_and_method() -> None:
    figure = draw(grid(models=22))
    figure.draw_without_rendering()
    assert len(figure.axes) == 44
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    frame = figure.bbox
    assert all(frame.x0 <= b.x0 and b.x1 <= frame.x1 and frame.y0 <= b.y0 and b.y1 <= frame.y1 for b in boxes)
    for axes in figure.axes:
        cells = [text.get_window_extent() for text in axes.texts]
        assert not any(a.overlaps(b) for a, b in itertools.combinations(cells, 2))
        assert all(text.get_fontsize() >= 7 for text in axes.texts)


def test_the_settings_of_a_picture_are_legible_on_the_smallest_one(tmp_path: Path) -> None:
    answers = answers_of({field: values[:1] for field, values in SPACE.items()} | {"max_gpus": [8]})
    chart = chart_of(written(answers, tmp_path))
    figure = draw(chart)
    figure.draw_without_rendering()
    shown = {text.get_text(): text.get_window_extent() for text in figure.texts}
    assert SEPARATOR.join(text for text in shown if text in chart.subtitle) == chart.subtitle
    assert all(box.x1 <= figure.bbox.x1 for box in shown.values())
    (legend,) = figure.legends
    assert not any(box.overlaps(legend.get_window_extent()) for box in shown.values())


@pytest.mark.parametrize("size", [(1, 1, 1), (3, 40, 70), (1, 400, 300), (100, 2, 2)])
def test_any_number_of_panels_and_points_can_be_drawn(size: tuple[int, int, int]) -> None:
    figure = draw(grid(*size))
    width, height = figure.get_size_inches() * figure.dpi
    assert width > 500 and width * height < 90e6
    assert len(figure.axes) == 2 * size[0]


def test_more_gpus_are_drawn_darker_and_no_recommendation_apart(tmp_path: Path) -> None:
    totals = [1, 2, 4, 8, NO_RECOMMENDATION, MISSING]
    panels = {("m", "lora"): np.array([totals])}
    figure = draw(Chart("", [512 * (i + 1) for i in range(6)], [1], ["m"], ["lora"], panels))
    image = figure.axes[0].images[0].get_array()[0]
    lightness = [float(np.dot(color[:3], (0.2126, 0.7152, 0.0722))) for color in image]
    assert lightness[:4] == sorted(lightness[:4], reverse=True)
    assert min(np.diff(lightness[:4][::-1])) > 0.1
    assert np.ptp(image[4][:3]) < 0.03
    assert tuple(image[5]) == to_rgba("white")
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", "2", "4", "8"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "1 GPU", "2 GPUs", "4 GPUs", "8 GPUs", "no recommendation", "no answer in the file"
    ]  # fmt: skip
    figure.savefig(tmp_path / "a.png")
    assert imread(tmp_path / "a.png").shape[2] == 4


def test_drawing_leaves_the_host_alone() -> None:
    before = dict(matplotlib.rcParams)
    draw(grid()).draw_without_rendering()
    assert dict(matplotlib.rcParams) == before
    code = (
        "import sys, autoconf.cli.plots.heatmap; assert 'matplotlib' not in sys.modules; import test_plot as t\n"
        "autoconf.cli.plots.heatmap.draw(t.grid()); assert 'matplotlib.pyplot' not in sys.modules"
    )
    code = code.replace(
        "import test_plot as t", "import numpy as np; from autoconf.cli.plots.answer_grid import Chart"
    ).replace("t.grid()", "Chart('', [1], [1], ['m'], ['lora'], {('m', 'lora'): np.array([[1]])})")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_setting_has_an_option() -> None:
    text = run("--help").stdout
    assert all(option(setting) in text for setting in SETTINGS)
