"""The commands of the other queries: one job, tables, and messages about bad input."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from autoconf import Job, avoid_oom, cheapest_gpu, cli, estimate, largest_batch, largest_sample, throughput
from autoconf.cli.ask import CHUNK
from autoconf.jobs.queries import AVOID_OOM, ESTIMATE, LARGEST_BATCH, LARGEST_SAMPLE, THROUGHPUT
from autoconf.predictor import registry

MODEL = {"model_name": "llama-7b", "method": "lora"}
COMMANDS = {
    "avoid-oom": (
        avoid_oom, AVOID_OOM,
        {**MODEL, "gpu_model": "L40S", "tokens_per_sample": 8192, "per_device_train_batch_size": 6, "number_gpus": 2},
    ),
    "largest-batch": (
        largest_batch, LARGEST_BATCH, {**MODEL, "gpu_model": "L40S", "tokens_per_sample": 8192, "number_gpus": 2},
    ),
    "largest-sample": (
        largest_sample, LARGEST_SAMPLE, {**MODEL, "gpu_model": "L40S", "batch_size": 8, "number_gpus": 2},
    ),
    "estimate": (
        estimate, ESTIMATE,
        {**MODEL, "gpu_model": "L40S", "tokens_per_sample": 8192, "batch_size": 8, "number_gpus": 2},
    ),
    "throughput": (
        throughput, THROUGHPUT,
        {"model_name": "mistral-7b-v0.1", "method": "lora", "gpu_model": "NVIDIA-A100-SXM4-80GB",
         "tokens_per_sample": 2048, "batch_size": 8, "number_gpus": 2, "steps": 500},
    ),
}  # fmt: skip
RANKED = {**MODEL, "tokens_per_sample": 8192, "batch_size": 16}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    return lambda *arguments, **more: CliRunner().invoke(cli.app, list(map(str, arguments)), **more)


def options(job: dict[str, Any]) -> list[str]:
    return [text for field, value in job.items() for text in (f"--{field.replace('_', '-')}", str(value))]


def absent(values: dict[str, Any]) -> dict[str, Any]:
    return {name: None if pd.isna(value) else value for name, value in values.items()}


@pytest.mark.parametrize("command", COMMANDS)
def test_one_job_gets_the_answer_of_the_function(run, command):
    ask, question, job = COMMANDS[command]
    result = run(command, *options(job), "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    answer = json.loads(result.stdout)
    expected = absent(ask(pd.DataFrame([job])).iloc[0].to_dict())
    assert {name: answer[name] for name in question.answers} == expected
    assert {field: answer[field] for field in job} == job
    assert answer["training_stack"] == "reference"
    only = pd.read_csv(pd.io.common.StringIO(run(command, "--csv", *options(job)).stdout))
    answered = [column for column in only if column != "notes"]
    assert answered[-len(question.answers) :] == list(question.answers)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_table_gets_the_answers_of_the_function_and_can_be_answered_again(run, command):
    ask, question, job = COMMANDS[command]
    jobs = pd.DataFrame([job, {**job, "number_gpus": 600}, {**job, "model_name": "gpt-9"}]).assign(id=["a", "b", "c"])
    jobs.to_csv("jobs.csv", index=False)
    result = run(command, "--csv", "jobs.csv", "--output", "answers.csv")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "jobs.csv: columns carried through, but ignored: id\n"
    answers = pd.read_csv("answers.csv")
    assert list(answers) == [*jobs, *question.answers]
    expected = ask(jobs.drop(columns="id"))
    for said, known in zip(
        answers[list(question.answers)].to_dict("records"), expected.to_dict("records"), strict=True
    ):
        assert absent(said) == pytest.approx(absent({**known, "reason": known["reason"] or None}))
    again = run(command, "--csv", "answers.csv", "--output", "again.csv")
    assert "earlier answers, replaced by new ones: " + ", ".join(question.answers) in again.stderr
    assert Path("again.csv").read_text() == Path("answers.csv").read_text()
    objects = json.loads(run(command, "--csv", "jobs.csv", "--json").stdout)
    assert [row["number_gpus"] for row in objects] == [2, 600, 2]


@pytest.mark.parametrize("command", COMMANDS)
def test_bad_lines_are_named_and_nothing_is_written(run, command):
    _, _, job = COMMANDS[command]
    jobs = pd.DataFrame([job, {**job, "number_gpus": 0}, {**job, "method": ""}])
    jobs.to_csv("jobs.csv", index=False)
    result = run(command, "--csv", "jobs.csv", "--output", "answers.csv")
    assert result.exit_code == 2 and not Path("answers.csv").exists()
    assert result.stderr.splitlines() == [
        "jobs.csv, line 3: number_gpus: must be a whole number >= 1, got '0'",
        "jobs.csv, line 4: method: is required",
    ]
    jobs.drop(columns="number_gpus").to_csv("jobs.csv", index=False)
    assert "required column missing: number_gpus;" in run(command, "--csv", "jobs.csv").stderr


@pytest.mark.parametrize("command", [*COMMANDS, "gpu-model"])
def test_missing_fields_of_one_job_are_named(run, command):
    result = run(command, "--method", "lora")
    assert result.exit_code == 2
    job = RANKED if command == "gpu-model" else COMMANDS[command][2]
    for field in {*job} - {"method", "batch_size", "per_device_train_batch_size", "steps"}:
        assert f"{field}: is required" in result.stderr
    assert "give --csv FILE" in run(command).stderr
    assert "for one job only" in run(command, "--csv", "jobs.csv", "--method", "lora").stderr


def test_a_column_with_the_name_of_an_output_is_not_overwritten(run):
    """It is only overwritten together with all other answers."""
    job = {**COMMANDS["largest-batch"][2], "batch_size": 8}
    for more in ({}, {"can_recommend": 1, "gpus": 2, "workers": 1, "reason": ""}):
        pd.DataFrame([{**job, **more}]).to_csv("jobs.csv", index=False)
        result = run("largest-batch", "--csv", "jobs.csv")
        assert (result.exit_code, result.stdout) == (2, "")
        assert "the output columns can_recommend, per_device_train_batch_size, batch_size, reason" in result.stderr
        assert "batch_size" in result.stderr.partition("the table already has")[2]


def test_the_types_of_gpu_are_ranked_for_one_job_and_for_a_table(run):
    rows = json.loads(run("gpu-model", *options(RANKED), "--json").stdout)
    ranking = cheapest_gpu(pd.DataFrame([RANKED]))
    assert [row["gpu_model"] for row in rows] == ranking["gpu_model"].tolist()
    types = len(registry.card(registry.DEFAULT).domain.gpus)
    assert len(rows) == types
    assert rows[0]["gpu_model"] == cheapest_gpu(Job(**RANKED)).gpu_model
    pd.DataFrame([RANKED, {**RANKED, "batch_size": 1}]).to_csv("jobs.csv", index=False)
    assert run("gpu-model", "--csv", "jobs.csv", "--output", "answers.csv").exit_code == 0
    answers = pd.read_csv("answers.csv")
    assert answers["batch_size"].tolist() == [16] * types + [1] * types
    assert answers["rank"].tolist() == [*range(1, types + 1)] * 2
    assert answers["gpu_model"].tolist()[:types] == ranking["gpu_model"].tolist()
    assert run("gpu-model", "--csv", "answers.csv", "--output", "again.csv").exit_code == 0
    assert Path("again.csv").read_text() == Path("answers.csv").read_text()


def test_prices_of_a_file_replace_the_packages(run):
    Path("prices.yaml").write_text("H100: 1\n")
    rows = json.loads(run("gpu-model", *options(RANKED), "--prices", "prices.yaml", "--json").stdout)
    assert (rows[0]["gpu_model"], rows[0]["cost_per_hour"]) == ("NVIDIA-H100-80GB-HBM3", 2)
    assert [row["cost_per_hour"] for row in rows[1:]] == [None] * (len(rows) - 1)
    for text, message in (
        ("H100: 1\nL40S: free\n", "prices.yaml:2: L40S: price_per_hour: must be a number > 0, got 'free'"),
        ("H200X: 1\n", "prices: 'H200X' is not in the domain of version 3.0.0, which has "),
    ):
        Path("prices.yaml").write_text(text)
        result = run("gpu-model", *options(RANKED), "--prices", "prices.yaml")
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith(message)


def test_one_job_is_answered_in_readable_lines(run):
    text = run("estimate", *options(COMMANDS["estimate"][2])).stdout
    assert "training_stack reference" in " ".join(text.split())
    assert not set(text) & set("\x1b─│")
    lines = run("gpu-model", *options(RANKED)).stdout.splitlines()
    assert lines[0].startswith("model_name llama-7b, method lora, tokens_per_sample 8192, batch_size 16, ")
    assert lines[2].split()[:3] == ["can_recommend", "gpu_model", "gpus"]
    first = cheapest_gpu(Job(**RANKED))
    shown = ["1", first.gpu_model, str(first.gpus), "1", f"{first.cost_per_hour:.2f}"]
    assert lines[3].split()[:5] == shown and f"{first.cost_per_million_tokens:.4f}" in lines[3] and len(lines) >= 25


@pytest.mark.parametrize(("tokens", "verdict"), [(8192, "1"), (32768, "0")])
def test_whether_a_job_fits_comes_with_the_probability_that_is_required(run, tokens, verdict):
    job = {**COMMANDS["estimate"][2], "tokens_per_sample": tokens}
    found = estimate(Job(**{field: value for field, value in job.items() if field != "number_gpus"}), number_gpus=2)
    (line,) = (line for line in run("estimate", *options(job)).stdout.splitlines() if line.split()[:1] == ["fits"])
    assert line.split(maxsplit=1)[1] == f"{verdict} (probability {found.probability:.2f}, 0.90 required)"


# --- "no" as an exit code ---------------------------------------------------------------------------------------------

# One change for each command with which the job of COMMANDS, or RANKED, gets "no".
REFUSED = {
    "recommend": {"max_gpus": 1, "tokens_per_sample": 65536},
    "avoid-oom": {"tokens_per_sample": 10**6},
    "largest-batch": {"tokens_per_sample": 10**6},
    "largest-sample": {"method": "full", "number_gpus": 1},
    "estimate": {"tokens_per_sample": 65536},
    "gpu-model": {"model_name": "gpt-9"},
}
ANSWERED = {
    **{command: job for command, (_, _, job) in COMMANDS.items()},
    "recommend": {**RANKED, "gpu_model": "L40S"},
    "gpu-model": RANKED,
}


@pytest.mark.parametrize("command", REFUSED)
@pytest.mark.parametrize("form", [[], ["--json"], ["--csv"]])
def test_no_is_a_failure_only_with_fail_on_no(run, command, form):
    job, refused = ANSWERED[command], {**ANSWERED[command], **REFUSED[command]}
    assert run(command, *form, *options(job), "--fail-on-no").exit_code == 0
    answered, failed = (run(command, *form, *options(refused), *more) for more in ([], ["--fail-on-no"]))
    assert (answered.exit_code, failed.exit_code) == (0, 4)
    assert failed.stdout == answered.stdout != ""


@pytest.mark.parametrize("command", REFUSED)
def test_any_no_of_a_table_is_a_failure_and_all_answers_are_written(run, command):
    job, refused = ANSWERED[command], {**ANSWERED[command], **REFUSED[command]}
    for jobs, code in (([job, job], 0), ([job, refused, job], 4)):
        pd.DataFrame([{"max_gpus": 8, **one} for one in jobs]).to_csv("jobs.csv", index=False)
        assert run(command, "--csv", "jobs.csv", "-o", "answers.csv", "--fail-on-no").exit_code == code
        answers = pd.read_csv("answers.csv")
        assert len(answers.drop_duplicates([*job])) == len({*map(str, jobs)}) and len(answers) >= len(jobs)


def test_an_explained_no_is_a_failure_too(run):
    job = options({**ANSWERED["recommend"], **REFUSED["recommend"]})
    assert run("recommend", *job, "--explain", "--fail-on-no").exit_code == 4
    assert run("recommend", *job, "--explain", "--fail-on-no", "-o", "why.png").exit_code == 4
    assert Path("why.png").stat().st_size > 0
    assert run("recommend", *options(ANSWERED["recommend"]), "--explain", "--fail-on-no").exit_code == 0


NOTED = "model_name,method,gpu_model,tokens_per_sample,batch_size\nllama-7b,lora,H100,512,4\n"
TAKEN = "gpu_model 'H100' was taken for NVIDIA-H100-80GB-HBM3, and also fits NVIDIA-H100-PCIe and NVIDIA-H100-NVL"


def test_a_table_has_a_column_of_notes_where_an_answer_has_one(run):
    Path("jobs.csv").write_text(NOTED + "llama-7b,lora,NVIDIA-L4,512,4\n")
    first = run("recommend", "--csv", "jobs.csv", "--output", "answers.csv")
    assert first.stderr == ""
    noted = pd.read_csv("answers.csv", keep_default_na=False)["notes"].tolist()
    assert noted == [TAKEN, ""]
    listed = [row["notes"] for row in json.loads(run("recommend", "--csv", "jobs.csv", "--json").stdout)]
    assert listed == [noted[0].split("; "), []]
    again = run("recommend", "--csv", "answers.csv")
    assert again.stdout == Path("answers.csv").read_text()
    assert again.stderr.strip().endswith("replaced by new ones: can_recommend, gpus, workers, reason, outcome, notes")


def test_notes_in_a_later_piece_of_a_long_table_have_their_column(run):
    rows = ["llama-7b,lora,NVIDIA-L4,512,4\n"] * CHUNK
    header, noted = NOTED.splitlines(keepends=True)
    lines = run("recommend", "--csv", "-", input="".join([header, *rows, noted])).stdout.splitlines()
    assert lines[0].endswith(",reason,outcome,notes")
    assert lines[1].endswith(",ok,") and TAKEN in lines[-1]


def test_a_users_own_column_of_notes_is_kept(run):
    Path("jobs.csv").write_text(NOTED.replace("\n", ",notes\n", 1).replace("512,4", "512,4,mine"))
    for file in ("jobs.csv", "answers.csv"):  # and again for a table that already has answers
        result = run("recommend", "--csv", file, "--output", "answers.csv")
        assert result.exit_code == 0
        assert Path("answers.csv").read_text().splitlines()[1] == "llama-7b,lora,H100,512,4,mine,1,1,1,,ok"
    assert json.loads(run("recommend", "--csv", "jobs.csv", "--json").stdout)[0]["notes"] == "mine"
