"""Options under the names that people type, and messages about unknown options."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from click.testing import Result
from typer.main import get_command
from typer.testing import CliRunner

from autoconf.cli.main import app
from autoconf.cli.spellings import advice, names
from autoconf.jobs.job import Workload, choices
from autoconf.jobs.queries import (
    AVOID_OOM,
    ESTIMATE,
    GPU_MODEL,
    LARGEST_BATCH,
    LARGEST_SAMPLE,
    MIN_GPUS,
    NUMBER_GPUS,
    PLAN,
    RUN_LENGTH,
    THROUGHPUT,
)
from autoconf.predictor import registry

QUERIES = {
    "recommend": MIN_GPUS, "avoid-oom": AVOID_OOM, "largest-batch": LARGEST_BATCH, "largest-sample": LARGEST_SAMPLE,
    "gpu-model": GPU_MODEL, "estimate": ESTIMATE, "throughput": THROUGHPUT, "plan": PLAN,
}  # fmt: skip
VALUES = {
    "even_layouts": "yes", "upcast_unquantized": "none", "offload": "none", "gpu_memory_gib": "40",
    "host_memory_limit_gib": "500", "image_tokens": "256",
    "allocator": "default", "objective": "sft", "quantization": "none", "gradient_sync": "every", "attention": "sdpa",
    "loading": "gpu", "lora_dropout": "0.1", "trained_modules": "head", "use_dora": "yes", "lora_layers": "0-3",
    "model_name": "llama-7b", "method": "lora", "gpu_model": "L40S", "tokens_per_sample": "2048", "batch_size": "8",
    "per_device_train_batch_size": "4", "model_version": "2.0.0", "gpus_per_worker": "8", "max_gpus": "8",
    "gradient_accumulation_steps": "2", "stack": "trl", "optim": "adamw_torch", "torch_dtype": "float32",
    "adapter_dtype": "float32", "mixed_precision": "bf16", "gradient_checkpointing": "reentrant", "loss": "full",
    "sharding": "fsdp2", "lora_r": "8", "lora_targets": "attention", NUMBER_GPUS: "2",
    **dict.fromkeys(RUN_LENGTH, "1000"),
}  # fmt: skip


def run(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env=environment)


@pytest.mark.parametrize(
    "options",
    [
        "--model llama-7b --method lora --gpu L40S --seq-len 2048 --batch 8 --gas 2 --lora-rank 8",
        "-m llama-7b --method lora -g L40S --max-length 2048 -b 8 --accumulation 2 -r 8",
        "--model_name=llama-7b --method=lora --gpu_type=L40S --max_seq_length=2048 --batch_size=8 "
        "--gradient-accumulation=2 --rank=8",
        "--base-model llama-7b --finetuning_type LoRA --accelerator L40S --cutoff_len 2048 --batch 8 "
        "--gradient_accumulation-steps 2 --lora_r 8",
    ],
)
def test_a_job_by_any_names_is_the_same_job(options: str) -> None:
    answer = json.loads(run("recommend", *options.split(), "--json").stdout)
    assert [answer[field] for field in ("model_name", "gpu_model", "tokens_per_sample", "batch_size", "lora_r")] == [
        "llama-7b", "L40S", 2048, 8, 8,
    ]  # fmt: skip
    assert (answer["method"].lower(), answer["gradient_accumulation_steps"], answer["gpus"]) == ("lora", 2, 1)


@pytest.mark.parametrize("command", QUERIES)
def test_every_command_accepts_every_name_of_its_fields(command: str) -> None:
    def spellings(field: str) -> list[str]:
        return [*dict.fromkeys(one for name in names(field) for one in (name, name[:2] + name[2:].replace("-", "_")))]

    spelled = {field: spellings(field) for field in QUERIES[command].fields}
    for turn in range(max(map(len, spelled.values()))):  # every field by its next name
        options = {field: every[turn % len(every)] for field, every in spelled.items()}
        result = run(command, *(word for field, option in options.items() for word in (option, VALUES[field])))
        assert "o such option" not in result.stderr, options
        for field, option in options.items():
            assert f"{field}: is required" not in result.stderr, option


def test_a_name_means_one_field_of_a_command() -> None:
    for query in QUERIES.values():
        every = [name for field in query.fields for name in names(field)]
        assert len(every) == len({*every})
        assert not {*every} & {*advice(query)}


@pytest.mark.parametrize(
    ("command", "option", "said"),
    [
        ("recommend", "--gpus", "the number of GPUs is the output of this command; --max-gpus limits it"),
        ("gpu-model", "--gpu=L40S", "gpu_model is the output of this command; omit it"),
        ("largest-sample", "--max_length", "tokens_per_sample is the output of this command; omit it"),
        ("largest-batch", "-b", "batch_size is the output of this command; omit it"),
        ("avoid-oom", "--batch", "give --per-device-train-batch-size instead"),
        ("recommend", "--global-batch-size", "batch_size does not include gradient accumulation"),
        ("estimate", "--nodes", "count GPUs"),
        ("recommend", "--bf16", "--mixed-precision bf16"),
        ("recommend", "--lora", "give --method lora"),
    ],
)
def test_a_misleading_option_is_refused_with_what_to_use_instead(command: str, option: str, said: str) -> None:
    result = run(command, "--model", "llama-7b", option, "8")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"{option.partition('=')[0].replace('_', '-')}: no such option; ")
    assert said in result.stderr


@pytest.mark.parametrize(
    ("typed", "near"),
    [("--modle", "--model"), ("--tokens-per-smaple", "--tokens-per-sample"), ("--fail-no", "--fail-on-no"),
     ("--gradient-acumulation-steps", "--gradient-accumulation-steps"), ("--optmizer", "--optimizer")],
)  # fmt: skip
def test_a_misspelled_option_suggests_the_near_one(typed: str, near: str) -> None:
    result = run("recommend", typed, "8", COLUMNS="200")
    assert result.exit_code == 2
    assert typed in result.stderr and near in re.findall(r"--[\w-]+", result.stderr.replace(typed, ""))


def test_commands_may_be_written_with_an_underscore() -> None:
    assert run("avoid_oom", "--help").exit_code == 0
    assert "Did you mean 'recommend'?" in run("recomend").stderr


@pytest.mark.parametrize("command", [*QUERIES, "plot"])
def test_help_shows_one_long_name_of_each_option(command: str) -> None:
    text = run(command, "--help", COLUMNS="200").stdout
    options = [line.split() for line in text.splitlines() if line.startswith("│ --")]
    assert [words[1] for words in options if words[2].startswith("--")] == []
    fields = QUERIES[command].fields if command in QUERIES else ("model_name", "gpu_model", "stack")
    shown = {words[1] for words in options}
    assert {names(field)[0] for field in fields} <= shown
    assert "--seq-len" not in shown and "--model" not in shown and "--as-csv" not in text


def test_help_lists_choices_and_the_units_of_batches() -> None:
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", run("recommend", "--help", COLUMNS="200").stdout).split())
    for field in Workload.model_fields:
        if field in ("stack", "optim", "torch_dtype", "mixed_precision", "loss", "sharding", "lora_targets"):
            assert all(choice in text for choice in choices(field)), field
    assert text.index("--per-device-train-batch-size") < text.index(" --batch-size")
    assert "samples per micro-batch over all GPUs" in text


def completed(command: str, *words: str) -> list[str]:
    """The completions of bash for the last word."""
    line = " ".join(["ado-autoconf", command, *words])
    environment = {
        "_ADO_AUTOCONF_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) + 1),
    }
    result = CliRunner().invoke(app, [], prog_name="ado-autoconf", env=environment)
    return result.stdout.split("\n")


@pytest.mark.parametrize(
    ("option", "typed", "values"),
    [
        ("--sharding", "shard", ["shard_grad_op"]),
        ("--stack", "", ["reference", "trl", "fms-hf-tuning", "llama-factory", "axolotl", "open-instruct", "unsloth"]),
        ("--method", "q", ["qlora"]),
        ("--optimizer", "adaf", ["adafactor"]),
        ("--model-version", "1", ["1.1.0"]),
        ("--gpu", "NVIDIA-L4", ["NVIDIA-L4", "NVIDIA-L40", "NVIDIA-L40S"]),
    ],
)
def test_values_are_completed(option: str, typed: str, values: list[str]) -> None:
    assert sorted(filter(None, completed("recommend", option, typed))) == sorted(values)


def test_models_are_completed_by_all_of_their_names() -> None:
    domain = registry.card(registry.DEFAULT).domain
    models = {**domain.models, **domain.vision_language}
    every = {name for model, more in models.items() for name in (model, *more.aliases)}
    assert {*filter(None, completed("estimate", "--model", "Qwen"))} == {
        name for name in every if name.startswith("Qwen")
    }


def test_csv_without_a_file_is_a_form_of_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = ["--model", "llama-7b", "--method", "lora", "--gpu", "L40S", "--seq-len", "2048", "--batch", "8"]
    for arguments in ([*job, "--csv"], ["--csv", *job], ["--csv", "--output", "-", *job]):
        result = run("recommend", *arguments)
        assert result.exit_code == 0
        assert result.stdout.splitlines()[1].startswith("llama-7b,lora,L40S,2048,8,3.0.0,")
    assert run("recommend", *job).stdout.split()[:2] == ["model_name", "llama-7b"]
    assert run("recommend", *job, "-o", "answer.csv").stdout == ""
    assert pd.read_csv("answer.csv")["gpus"].tolist() == [1]


def test_the_exit_codes_are_in_the_help() -> None:
    text = " ".join(run("--help", COLUMNS="200").stdout.split())
    for code in ("0 answered", "1 broken environment", "2 bad input", "3 no recommendation", "4 the answer is no",
                 "128 + n"):  # fmt: skip
        assert code in text


def test_every_command_takes_underscores() -> None:
    commands: dict[str, Callable] = get_command(app).commands  # type: ignore[attr-defined]
    assert {*QUERIES, "check", "job", "mcp", "plot", "serve", "trace", "train", "versions", "stacks"} == {*commands}
    assert "No such option" not in run("trace", "config.json", "--lora_targets", "q_proj", "--name", "x").stderr
