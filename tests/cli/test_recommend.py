"""The command `ado-autoconf`, with the real predictor, in this process."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
from click.testing import Result
from job_tables import COLUMNS, GOOD, HEADER, ONE_JOB, rows, table
from terminal import on_a_terminal
from typer.testing import CliRunner

import autoconf
from autoconf import recommend
from autoconf.cli.ask import CHUNK
from autoconf.cli.console import figure_tables
from autoconf.cli.main import app
from autoconf.jobs.job import TRAINING_STACK
from autoconf.jobs.names import listed
from autoconf.jobs.presets import presets
from autoconf.jobs.stack import Optim
from autoconf.predictor import cards, registry
from autoconf.predictor.user_versions import VARIABLE


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the command in an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments, **more: CliRunner().invoke(app, [str(a) for a in arguments], **more)


def assert_says(result: Result, code: int, *messages: str) -> None:
    """The command ended with this exit code and exactly these lines on standard error, and no data."""
    assert result.stderr.splitlines() == list(messages)
    assert (result.exit_code, result.stdout) == (code, "")


def test_a_table_keeps_its_columns_and_gets_the_answers_of_recommend(run: Callable[..., Result]) -> None:
    jobs = [GOOD, GOOD.replace("8192", "16384"), GOOD.replace("lora", "full"), "gpt-9" + GOOD[8:]]
    Path("jobs.csv").write_text(table(*(f"{job},16,{i}" for i, job in enumerate(jobs)), header=f"{HEADER},max_gpus,id"))
    result = run("recommend", "--csv", "jobs.csv", "--output", "answers.csv")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "jobs.csv: columns carried through, but ignored: id\n"
    answers = pd.read_csv("answers.csv", dtype={"gpus": "Int64", "workers": "Int64"}, keep_default_na=True)
    assert list(answers) == [*COLUMNS, "max_gpus", "id", "can_recommend", "gpus", "workers", "reason", "outcome"]
    expected = recommend(pd.read_csv("jobs.csv"))
    pd.testing.assert_frame_equal(answers[list(expected)].fillna({"reason": ""}), expected)
    assert answers["can_recommend"].tolist() == [1, 1, 1, 0]
    assert answers["id"].tolist() == [0, 1, 2, 3]


def test_columns_that_may_be_meant_to_count_are_named(run: Callable[..., Result]) -> None:
    text = table(f"{GOOD},1,adafactor,yes,a", header=f"{HEADER},max_gpu,optimizer,packing,id")
    result = run("recommend", "--csv", "-", input=text)
    assert (result.exit_code, rows(result.stdout)[0]["gpus"]) == (0, "2")
    assert result.stderr.splitlines() == [
        "standard input: columns carried through, but ignored: max_gpu, optimizer, packing, id",
        "standard input: column 'max_gpu' is ignored; did you mean max_gpus?",
        "standard input: column 'optimizer' is ignored; did you mean optim?",
        f"standard input: column 'packing' is ignored: answers hold for {TRAINING_STACK}",
    ]


def test_no_recommendation_is_an_answer(run: Callable[..., Result]) -> None:
    result = run("recommend", "--csv", "-", input=table("gpt-9" + GOOD[8:]))
    assert result.exit_code == 0
    (row,) = rows(result.stdout)
    assert (row["can_recommend"], row["gpus"], row["workers"]) == ("0", "", "")
    assert "gpt-9" in row["reason"]


def test_bad_rows_are_named_by_line_and_nothing_is_written(run: Callable[..., Result]) -> None:
    Path("answers.csv").write_text("of yesterday")
    Path("jobs.csv").write_text(
        table(
            f'{GOOD},,"a note\nof two lines"',
            "",
            GOOD.replace(",16", ",0") + ",,",
            f"{GOOD},8.5,",
            ",lora,L40S,x,-1,,",
            header=f"{HEADER},max_gpus,note",
        )
    )
    result = run("recommend", "--csv", "jobs.csv", "--output", "answers.csv")
    assert_says(
        result,
        2,
        "jobs.csv, line 5: batch_size: must be a whole number >= 1, got '0'",
        "jobs.csv, line 6: max_gpus: must be a whole number >= 1, got '8.5'",
        "jobs.csv, line 7: model_name: is required; "
        "tokens_per_sample: must be a whole number >= 1, got 'x'; batch_size: must be a whole number >= 1, got '-1'",
    )
    assert Path("answers.csv").read_text() == "of yesterday"
    assert sorted(os.listdir()) == ["answers.csv", "jobs.csv"]


def test_rows_whose_fields_exclude_each_other_are_named_by_line(run: Callable[..., Result]) -> None:
    lines = [f"{GOOD},,8,", f"{GOOD},4,8,", GOOD.replace("lora", "full") + ",,8,", GOOD.replace(",16", ",") + ",,,sgd"]
    text = table(*lines, f"{GOOD},,,adam2", header=f"{HEADER},per_device_train_batch_size,lora_r,optim")
    assert_says(
        run("recommend", "--csv", "-", input=text),
        2,
        "standard input, line 3: batch_size and per_device_train_batch_size exclude each other: give one of them",
        "standard input, line 4: method 'full' and lora_r 8 exclude each other",
        "standard input, line 5: batch_size: is required, or per_device_train_batch_size instead",
        f"standard input, line 6: optim: must be {listed(get_args(Optim), 'or')}, got 'adam2'",
    )


def test_at_most_twenty_bad_rows_are_named(run: Callable[..., Result]) -> None:
    result = run("recommend", "--csv", "-", input=table(*[GOOD.replace("16", "0")] * 25))
    lines = result.stderr.splitlines()
    assert result.exit_code == 2
    assert lines[0].startswith("standard input, line 2: batch_size: ")
    assert lines[-1] == "standard input: 5 more bad lines"
    assert len(lines) == 21


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: the file is empty; its first line must name the columns"),
        (b"\n\n", "line 1: the file is empty; its first line must name the columns"),
        (b"a,b\n1,2\n", f"line 1: required column missing: {', '.join(COLUMNS)} or "
         "per_device_train_batch_size; the table has a, b"),
        (table(GOOD).replace(",", ";").encode(), "line 1: the separator seems to be ';', but must be ','"),
        (table(GOOD).replace(",", "\t").encode(), "line 1: the separator seems to be '\\t', but must be ','"),
        (b'\n"a"|"b"\n"1"|"2"\n', "line 2: the separator seems to be '|', but must be ','"),
        (f"{HEADER},method\n".encode(), "line 1: column named more than once: 'method'"),
        (table(GOOD, f"{GOOD},9").encode(), "line 3: 6 fields, but line 1 names 5 columns"),
        (table(GOOD, "llama-7b").encode(), "line 3: 1 fields, but line 1 names 5 columns"),
        (table(GOOD, '"' + GOOD, GOOD).encode(), "line 3: not CSV: unexpected end of data"),
        (table(GOOD, '"llama"-7b').encode(), "line 3: not CSV: ',' expected after '\"'"),
        (table("x" * 200_000).encode(), "line 2: not CSV: field larger than field limit (131072)"),
        (table(GOOD, GOOD).encode() + b"\xff\n", "line 4: not text in UTF-8: byte 1 is 0xff"),
        (table(GOOD).encode("utf-16"), "line 1: not text in UTF-8: byte 1 is 0xff"),
        (b"\x7fELF\x02\x01\0\0", "line 1: not text: byte 7 is 0x00"),
        (f"{HEADER},gpus".encode(), "line 1: the output columns can_recommend, gpus, workers, reason, outcome are "
         "appended, but the table already has gpus; rename or remove it"),
    ],
)  # fmt: skip
def test_an_invalid_table_gets_an_error_of_one_line(run: Callable[..., Result], content: bytes, message: str) -> None:
    Path("jobs.csv").write_bytes(content)
    assert_says(run("recommend", "--csv", "jobs.csv"), 2, f"jobs.csv, {message}")


def test_a_byte_order_mark_crlf_and_spaces_are_no_problem(run: Callable[..., Result]) -> None:
    text = table(GOOD).replace(",", ", ").replace("\n", "\r\n")
    Path("jobs.csv").write_bytes(text.encode("utf-8-sig"))
    result = run("recommend", "--csv", "jobs.csv")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[0] == f"{HEADER},can_recommend,gpus,workers,reason,outcome"
    assert rows(result.stdout)[0]["gpus"] == "2"


def test_other_separators_are_allowed_in_names_and_cells(run: Callable[..., Result]) -> None:
    result = run("recommend", "--csv", "-", "--json", input=table(f"{GOOD},a\tb;c", header=f"{HEADER},x;y|z"))
    assert json.loads(result.stdout)[0]["x;y|z"] == "a\tb;c"


def test_a_table_with_answers_can_be_answered_again(run: Callable[..., Result]) -> None:
    Path("jobs.csv").write_text(table(f"1,{GOOD},8", f"2,{GOOD},1", header=f"id,{HEADER},max_gpus"))
    run("recommend", "--csv", "jobs.csv", "--output", "answers.csv")
    first = Path("answers.csv").read_text()
    Path("answers.csv").write_text(first.replace("1,2,1,", "0,,,of yesterday"))
    again = run("recommend", "--csv", "answers.csv")
    assert (again.exit_code, again.stdout) == (0, first)
    assert again.stderr.splitlines() == [
        "answers.csv: earlier answers, replaced by new ones: can_recommend, gpus, workers, reason, outcome",
        "answers.csv: columns carried through, but ignored: id",
    ]


def test_empty_cells_of_optional_columns_take_the_default(run: Callable[..., Result]) -> None:
    header = f"{HEADER},model_version,max_gpus"
    text = table(f"{GOOD},,", f"{GOOD}, ,1", f"{GOOD},1.1.0,8", header=header)
    result = run("recommend", "--csv", "-", input=text)
    assert [row["can_recommend"] for row in rows(result.stdout)] == ["1", "0", "1"]


def test_the_option_gives_the_version_of_rows_that_name_none(run: Callable[..., Result]) -> None:
    text = table(f"{GOOD},", f"{GOOD},1.1.0", header=f"{HEADER},model_version")
    result = run("recommend", "--csv", "-", "--model-version", "0.0.1", input=text)
    first, second = rows(result.stdout)
    assert (first["can_recommend"], second["can_recommend"]) == ("0", "1")
    assert first["reason"].startswith("model_version '0.0.1' is not released")


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_table_as_json(run: Callable[..., Result], count: int) -> None:
    text = table(*[f"{GOOD},,Zürich"] * count, header=f"{HEADER},max_gpus,site")
    result = run("recommend", "--csv", "-", "--json", input=text)
    assert result.exit_code == 0
    assert json.loads(result.stdout) == [
        {
            "model_name": "llama-7b", "method": "lora", "gpu_model": "NVIDIA-A100-80GB-PCIe", "tokens_per_sample": 8192,
            "batch_size": 16, "max_gpus": None, "site": "Zürich", "can_recommend": 1, "gpus": 2, "workers": 1,
            "reason": "",
            "outcome": "ok",
        }
    ] * count  # fmt: skip


def test_a_table_without_rows_gives_one_without_rows(run: Callable[..., Result]) -> None:
    result = run("recommend", "--csv", "-", input=HEADER)
    assert (result.exit_code, result.stdout) == (0, f"{HEADER},can_recommend,gpus,workers,reason,outcome\n")


def test_a_long_table_is_answered_in_order(run: Callable[..., Result]) -> None:
    jobs = [f"llama-7b,lora,L40S,512,{1 + i % 9},{i}" for i in range(2 * CHUNK + 5)]
    result = run("recommend", "--csv", "-", input=table(*jobs, header=f"{HEADER},id"))
    answers = rows(result.stdout)
    assert [row["id"] for row in answers] == [str(i) for i in range(len(jobs))]
    assert len({(row["batch_size"], row["gpus"]) for row in answers}) == 9


def test_one_job_by_options(run: Callable[..., Result]) -> None:
    result = run("recommend", *ONE_JOB, "--json")
    answer = json.loads(result.stdout)
    assert (answer["can_recommend"], answer["gpus"], answer["workers"], answer["reason"]) == (1, 2, 1, "")
    assert (answer["tokens_per_sample"], answer["max_gpus"]) == (8192, 8)
    assert answer["model_version"] == registry.DEFAULT
    assert answer.pop("training_stack") == "reference"
    assert answer.pop("notes") == [
        "stack was not given, reference is the default, and it decides: with trl it takes 4 GPUs, with fms-hf-tuning "
        "nothing fits"
    ]
    (row,) = rows(run("recommend", *ONE_JOB, "--csv").stdout)
    row.pop("notes", None)
    assert {key: str(value) for key, value in answer.items()} == row


def test_one_job_says_how_it_trains(run: Callable[..., Result]) -> None:
    settings = ["--stack=TRL", "--optim=adamw-bnb-8bit", "--sharding=fsdp2", "--lora-r=8", "--mixed-precision=bf16"]
    answer = json.loads(run("recommend", *ONE_JOB, *settings, "--json").stdout)
    assert (answer["stack"], answer["optim"], answer["lora_r"]) == ("trl", "adamw_bnb_8bit", 8)
    assert answer["training_stack"] == "trl with optim=adamw_bnb_8bit, sharding=fsdp2, lora_r=8"
    assert "loss" not in answer


def test_one_job_by_the_batch_of_each_gpu(run: Callable[..., Result]) -> None:
    result = run("recommend", *ONE_JOB[:-1], "--per-device-train-batch-size=8", "--json")
    answer = json.loads(result.stdout)
    assert (answer["gpus"], answer["per_device_train_batch_size"], "batch_size" in answer) == (1, 8, False)


def test_stacks_are_listed_with_their_sources(run: Callable[..., Result]) -> None:
    printed, described = run("stacks").stdout, json.loads(run("stacks", "--json").stdout)
    assert list(described) == list(presets())
    for name, preset in presets().items():
        assert f"{name}: {preset.description}" in printed
        for setting in preset.settings.values():
            assert f"{setting.value}" in printed and setting.source in printed
    assert described["trl"]["settings"]["loss"]["value"] == "chunked"
    assert "non-reentrant where sharding fsdp2" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*ONE_JOB, "--batch-size=0"], "batch_size: must be a whole number >= 1, got '0'"),
        ([*ONE_JOB, "--method= "], "method: is required"),
        (ONE_JOB[1:], "model_name: is required"),
        ([*ONE_JOB, "--csv=jobs.csv"], "--model-name, --method, --gpu-model, --tokens-per-sample, --batch-size: for "
         "one job only; with --csv these are columns of the file"),
        (ONE_JOB[:-1], "batch_size: is required, or per_device_train_batch_size instead"),
        ([*ONE_JOB, "--per-device-train-batch-size=4"], "batch_size and per_device_train_batch_size exclude each "
         "other: give one of them"),
        ([*ONE_JOB, "--stack=zero"], "stack: must be reference, trl, fms-hf-tuning, llama-factory, axolotl, "
         "open-instruct or unsloth, got 'zero'"),
        ([*ONE_JOB, "--stack=trl", "--adapter-dtype=bfloat16"], "adapter_dtype 'bfloat16' and torch_dtype 'float32' "
         "(of the stack trl) exclude each other"),
        (["--csv=no.csv"], "no.csv: cannot read it: No such file or directory"),
        (["--csv=."], ".: cannot read it: Is a directory"),
        (["--csv="], ": cannot read it: No such file or directory"),
    ],
)  # fmt: skip
def test_bad_arguments_are_bad_input(run: Callable[..., Result], arguments: list[str], message: str) -> None:
    assert_says(run("recommend", *arguments), 2, message)


@pytest.mark.parametrize(
    ("options", "field"), [(ONE_JOB, "model_name"), (ONE_JOB, "model_version"), (["--csv=-"], "model_version")]
)
def test_an_option_that_is_not_text_is_bad_input(run: Callable[..., Result], options: list[str], field: str) -> None:
    result = run("recommend", *options, f"--{field.replace('_', '-')}=a\udcff", input=table(GOOD))
    assert_says(result, 2, f"{field}: must be text in UTF-8, got 'a\\udcff'")


def test_without_a_job_the_error_names_the_options(run: Callable[..., Result]) -> None:
    result = run("recommend")
    assert result.exit_code == 2
    assert "--csv" in result.stderr


def test_a_broken_version_is_a_broken_environment(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "MODELS", tmp_path / "empty")
    monkeypatch.setattr(registry, "_loaded", {})
    for arguments in (ONE_JOB, ["--csv=-"]):
        result = run("recommend", *arguments, "--output=answers.csv", input=table(GOOD))
        assert result.exit_code == 1
        assert result.stderr.startswith(f"version {registry.DEFAULT}: cannot read card.json: ")
        assert len(result.stderr.splitlines()) == 1
    assert os.listdir() == []


# --- where answers go -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere/answers.csv", "nowhere/answers.csv: cannot write it: No such file or directory"),
        (".", ".: cannot write it: Is a directory"),
        ("jobs.csv/answers.csv", "jobs.csv/answers.csv: cannot write it: Not a directory"),
        ("loop.csv", "loop.csv: cannot write it: Too many levels of symbolic links"),
    ],
)
def test_a_path_that_cannot_be_written_is_bad_input(run: Callable[..., Result], path: str, message: str) -> None:
    Path("jobs.csv").write_text(table(GOOD))
    Path("loop.csv").symlink_to("pool.csv")
    Path("pool.csv").symlink_to("loop.csv")
    assert_says(run("recommend", "--csv", "jobs.csv", "--output", path), 2, message)
    assert sorted(p.name for p in Path().iterdir() if p.is_symlink()) == ["loop.csv", "pool.csv"]
    assert len(os.listdir()) == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_a_broken_environment(run: Callable[..., Result]) -> None:
    result = run("recommend", "--csv=-", "--output=/dev/full", input=table(GOOD))
    assert_says(result, 1, "/dev/full: writing failed: No space left on device")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_an_old_file_keeps_its_mode_and_a_link_stays_a_link(run: Callable[..., Result]) -> None:
    Path("real.csv").touch(0o640)
    Path("link.csv").symlink_to("real.csv")
    assert run("recommend", *ONE_JOB, "--output", "link.csv").exit_code == 0
    assert run("recommend", *ONE_JOB, "--output", "new.csv").exit_code == 0
    assert Path("link.csv").is_symlink()
    assert stat.S_IMODE(os.stat("real.csv").st_mode) == 0o640
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(os.stat("new.csv").st_mode) == 0o666 & ~umask
    assert Path("real.csv").read_bytes() == Path("new.csv").read_bytes()
    assert sorted(os.listdir()) == ["link.csv", "new.csv", "real.csv"]


def test_answers_may_replace_the_jobs(run: Callable[..., Result]) -> None:
    Path("jobs.csv").write_text(table(GOOD))
    assert run("recommend", "--csv", "jobs.csv", "--output", "jobs.csv").exit_code == 0
    assert rows(Path("jobs.csv").read_text())[0]["gpus"] == "2"


# --- versions and help ------------------------------------------------------------------------------------------------


@pytest.fixture
def card() -> cards.Card:
    return registry.card(registry.DEFAULT)


def test_versions_fits_a_screen(run: Callable[..., Result], card: cards.Card) -> None:
    result = run("versions", env={"COLUMNS": "80"})
    lines = result.stdout.splitlines()
    assert (result.exit_code, result.stderr) == (0, "")
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    words = " ".join(result.stdout.split())
    for part in (
        card.version,
        f"{len(card.domain.gpus)}: ",
        *(gpu for gpu in ("A100", "H100", "L40S", "B200") if any(gpu in name for name in card.domain.gpus)),
        *card.domain.methods,
        f"{len(card.domain.models)}: ",
        *registry.RELEASED,
    ):
        assert part in words


def test_one_version_tells_gpus_limits_and_figures(run: Callable[..., Result], card: cards.Card) -> None:
    plain = run("versions", card.version).stdout
    assert not set(plain) & set("\x1b─│")
    for word in ("NVIDIA-L40S", "44.4 GiB", "lora", "max_batch_size", *card.evaluation["figures"]):
        assert word in plain


def test_models_and_their_other_names_are_on_separate_lines(run: Callable[..., Result], card: cards.Card) -> None:
    _, _, *lines = run("versions", card.version, "--models").stdout.splitlines()
    models = {**card.domain.models, **card.domain.vision_language}
    names = [name for model, more in models.items() for name in (model, *more.aliases)]
    assert [line.split()[0] for line in lines] == names


def test_names_stay_whole_on_a_narrow_terminal(tmp_path: Path, card: cards.Card) -> None:
    names = [*card.domain.gpus, *(row["family"] for row in card.evaluation["by_family"])]
    stdout = on_a_terminal("stdout", ["versions", card.version], tmp_path, columns=80)
    assert [name for name in names if name not in stdout] == []


def test_json_has_all_of_every_version(run: Callable[..., Result], card: cards.Card) -> None:
    for arguments in ([], [card.version], ["--models"]):
        listed = json.loads(run("versions", "--json", *arguments).stdout)
        (default,) = [version for version in listed if version["default"]]
        assert default["domain"] == card.domain.model_dump()
        assert default["evaluation"] == card.evaluation


@pytest.mark.parametrize("folder", [None, "gone"])
def test_a_user_version_without_its_folder_is_the_reason_of_its_rows(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, folder: str | None
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if folder:
        monkeypatch.setenv(VARIABLE, folder)
    versions = (f"{GOOD},2.0.0", f"{GOOD},2.0.0+mine")
    Path("jobs.csv").write_text(table(*versions, header=f"{HEADER},model_version"))
    result = run("recommend", "--csv", "jobs.csv")
    assert result.exit_code == 0
    known, unknown = rows(result.stdout)
    assert (known["can_recommend"], unknown["can_recommend"], unknown["outcome"]) == ("1", "0", "bad_value")
    assert "AUTOCONF_MODELS" in unknown["reason"]
    # A job is not answered if its only version cannot be loaded.
    assert run("recommend", *ONE_JOB, "--model-version", "2.0.0+mine").exit_code == 1


@pytest.mark.parametrize("arguments", [["9.9.9"], ["9.9.9", "--models"], ["9.9.9", "--json"]])
def test_a_version_that_is_not_released_is_bad_input(run: Callable[..., Result], arguments: list[str]) -> None:
    released = ", ".join(registry.RELEASED)
    message = f"VERSION: model_version {arguments[0]!r} is not released; released versions are {released}"
    assert_says(run("versions", *arguments), 2, message)


def test_figures_of_any_shape_become_tables() -> None:
    uneven = {"figures": {"a": {"value": 1, "required": 2}, "b": 3, "c": {"value": 4}}, "none": {}, "list": [1, 2]}
    assert figure_tables(uneven) == [
        [{"evaluation": "none", "": {}}, {"evaluation": "list", "": [1, 2]}],
        [
            {"figures": "a", "value": 1, "required": 2, "": None},
            {"figures": "b", "value": None, "required": None, "": 3},
            {"figures": "c", "value": 4, "required": None, "": None},
        ],
    ]


def test_help_and_version(run: Callable[..., Result]) -> None:
    assert run("--version").stdout == f"ado-autoconf {autoconf.__version__}\n"
    for command in ([], ["recommend"], ["versions"], ["stacks"], ["plot"]):
        result = run(*command, "--help")
        assert (result.exit_code, result.stderr) == (0, "")
    assert f"Answers hold for {TRAINING_STACK}." in " ".join(run("recommend", "--help").stdout.split())
    assert run("recommend", "--no-such-option").exit_code == 2
