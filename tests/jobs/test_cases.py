"""The command reads each file of tests/data/job_cases correctly, or refuses it by name."""

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from autoconf.cli.main import app

CASES = Path(__file__).parents[1] / "data" / "job_cases"


def run(name: str, *options: str) -> Result:
    return CliRunner().invoke(app, ["recommend", "--job", str(CASES / name), "--gpu-model=H100", *options])


def read(name: str, *options: str) -> dict:
    result = run(name, "--json", *options)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("flash.yaml", {"method": "full", "tokens_per_sample": 1024, "per_device_train_batch_size": 8, "stack": "trl"}),
        ("noflash.yaml", {"method": "full", "tokens_per_sample": 1024, "per_device_train_batch_size": 8}),
        (
            "srun.sbatch",
            {"method": "full", "tokens_per_sample": 2048, "per_device_train_batch_size": 2},
        ),
        ("split.sh", {"method": "lora", "lora_r": 8, "lora_targets": "all-linear", "tokens_per_sample": 2048}),
        ("append.sh", {"method": "lora", "lora_r": 64, "tokens_per_sample": 2048, "per_device_train_batch_size": 1}),
        ("hash.sh", {"method": "lora", "lora_r": 16, "tokens_per_sample": 8192, "per_device_train_batch_size": 16}),
        ("comment.sh", {"method": "full", "tokens_per_sample": 1024, "per_device_train_batch_size": 1}),
        ("nosuffix/launch.sh", {"method": "lora", "sharding": "fsdp2", "tokens_per_sample": 2048}),
        (
            "llf.sh",
            {
                "method": "lora",
                "tokens_per_sample": 2048,
                "per_device_train_batch_size": 1,
                "mixed_precision": "bf16",
                "lora_r": 8,
                "lora_targets": "all-linear",
                "stack": "llama-factory",
            },
        ),
        (
            "pythonpy.py",
            {
                "model_name": "Qwen/Qwen2.5-7B",
                "method": "full",
                "tokens_per_sample": 2048,
                "per_device_train_batch_size": 2,
            },
        ),
        (
            "more/literals.py",
            {
                "method": "qlora",
                "tokens_per_sample": 4096,
                "per_device_train_batch_size": 2,
                "lora_r": 64,
                "gradient_accumulation_steps": 8,
                "lora_targets": "all-linear",
                "optim": "paged_adamw_8bit",
            },
        ),
        ("more/parsed_args.py", {"method": "full", "tokens_per_sample": 2048, "per_device_train_batch_size": 1}),
        ("more/notebook.ipynb", {"method": "full", "tokens_per_sample": 1024, "per_device_train_batch_size": 4}),
        ("more/commented.sh", {"method": "lora", "tokens_per_sample": 2048, "per_device_train_batch_size": 2}),
        ("more/backslash_end.sh", {"method": "lora", "lora_r": 32, "tokens_per_sample": 4096}),
        ("more/in_bash.sbatch", {"method": "full", "tokens_per_sample": 2048, "per_device_train_batch_size": 2}),
        (
            "more/submitted.sh",
            {"method": "full", "per_device_train_batch_size": 4, "gradient_checkpointing": "none", "sharding": "ddp"},
        ),
        ("more/handbook.yaml", {"method": "full", "tokens_per_sample": 2048, "per_device_train_batch_size": 8}),
        ("more/config_distill.yaml", {"method": "full", "tokens_per_sample": 8192, "loss": "chunked"}),
        (
            "more/factory.yaml",
            {
                "method": "qlora",
                "tokens_per_sample": 4096,
                "per_device_train_batch_size": 2,
                "lora_r": 16,
                "lora_targets": "q_proj,v_proj",
                "gradient_accumulation_steps": 4,
                "stack": "llama-factory",
            },
        ),
        ("more/factory_full.yaml", {"method": "full", "loss": "chunked", "stack": "llama-factory"}),
        ("more/factory_override.sh", {"method": "qlora", "tokens_per_sample": 8192, "lora_r": 64}),
        ("more/factory_fsdp.sh", {"method": "full", "sharding": "fsdp2", "tokens_per_sample": 4096}),
        ("launch.sh", {"sharding": "fsdp1", "tokens_per_sample": 2048, "torch_dtype": "bfloat16"}),
    ],
)
def test_a_case_is_read(name: str, fields: dict) -> None:
    answer = read(name)
    assert {field: answer.get(field) for field in fields} == fields


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("grpo.yaml", ["grpo.yaml:", "GRPO is answered for its training step alone", "--objective grpo"]),
        ("dpo.sh", ["dpo.sh: not certain: method", "--method"]),
        ("qlora.sh", ["--bits", "--lora_r", "--method", "--tokens-per-sample"]),
        ("block.sh", ["--block_size", "32768", "--tokens-per-sample"]),
        ("tune.yaml", ["torchtune"]),
        ("nested.yaml", ["sections model, lora, training", "training.max_seq_length: 4096"]),
        ("branch.sh", ["$BS (4 or 1)", "$LEN (8192 or 2048)", "--per-device-train-batch-size", "--tokens-per-sample"]),
        ("fsdpcfg.sh", ["method", "tokens_per_sample", "--method and --tokens-per-sample"]),
        ("cfgvar.sh", ["--config_file", "$1"]),
        ("more/assigned_twice.py", ["SFTConfig: per_device_train_batch_size: BATCH", "--per-device-train-batch-size"]),
        ("more/unsloth_vision.py", ["unsloth_vision.py:3", "models that also read images are not covered"]),
        ("more/kbit.py", ["kbit.py", "give --tokens-per-sample"]),
        ("more/frozen.py", ["frozen.py:4 requires_grad"]),
        ("more/trainer.py", ["not certain: tokens_per_sample", "--tokens-per-sample"]),
        ("more/evaluated.sh", ["evaluated.sh:5 --max_length: $LEN (2048 or 16384)", "--tokens-per-sample"]),
        ("more/launcher_of_two.sh", ["launcher_of_two.sh:3 $RUN (python or torchrun --nproc_per_node 8)"]),
        ("more/spectrum.yaml", ["spectrum.yaml:8 spectrum_config_path", "--method"]),
        ("more/reentrant.sh", ["--use_reentrant", "--gradient-checkpointing"]),
        ("more/hydra.sh", ["data.max_length", "--tokens-per-sample", "trainer.micro_batch_size"]),
        ("more/own_script.sh", ["--ctx: '4096'", "--tokens-per-sample"]),
        ("more/factory_freeze.yaml", ["finetuning_type: freeze", "--method full for an upper bound"]),
        ("more/factory_gptq.yaml", ["GPTQ", "already quantized"]),
        ("more/factory_no_precision.yaml", ["bf16", "--mixed-precision"]),
        ("more/factory_old.sh", ["lora_r and lora_targets", "--lora-r", "--lora-targets"]),
        ("more/tasks.yaml", ["tasks.yaml: must have settings"]),
        ("more/chart.yaml", ["a template of Helm or Jinja"]),
        ("more/Makefile", ["a Makefile"]),
        ("dup.yaml", ["dup.yaml:4", "lora_r"]),
        ("local.yaml", ["local.yaml:1 model_name_or_path", "qwen2.5-7b", "--model-name"]),
        ("quote.sh", ["quote.sh:1"]),
        ("listbomb.yaml", ["listbomb.yaml"]),
        ("job.yaml", ["--model-name", "--method"]),
        ("trainjob.yaml", ["--model-name", "--method"]),
        ("kind.yaml", ["--model-name", "--method"]),
    ],
)
def test_a_refused_case_gets_one_line_with_the_way_out(name: str, words: list[str]) -> None:
    result = run(name)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert [word for word in words if word not in line] == []


def test_options_set_fields_that_a_script_lacks() -> None:
    answer = read("qlora.sh", "--method=qlora", "--tokens-per-sample=528", "--lora-targets=all-linear")
    assert (answer["method"], answer["lora_r"], answer["tokens_per_sample"]) == ("qlora", 64, 528)
    answer = read("fsdpcfg.sh", "--method=full", "--tokens-per-sample=2048")
    assert answer["sharding"] == "fsdp2"
    answer = read("branch.sh", "--per-device-train-batch-size=4", "--tokens-per-sample=2048")
    assert answer["method"] == "lora"


def test_a_launchers_config_that_is_not_certain_leaves_the_sharding_open() -> None:
    job = ["--model-name=qwen2.5-7b", "--method=full", "--tokens-per-sample=2048", "--per-device-train-batch-size=2"]
    result = run("cfgvar.sh", *job)
    assert (result.exit_code, "--sharding" in result.stderr) == (2, True)
    assert read("cfgvar.sh", *job, "--sharding=fsdp2")["sharding"] == "fsdp2"


def test_assumptions_are_in_every_format_of_the_answer() -> None:
    result = run("comment.sh", "--json")
    answer = json.loads(result.stdout)
    assert any("tokens_per_sample = 1024" in line for line in answer["assumed"])
    model = next(row for row in answer["read"] if row["key"] == "--model_name_or_path")
    assert (model["value"], model["line"], Path(model["file"]).name) == ("Qwen/Qwen2.5-7B", 2, "comment.sh")
    first, second, third, *_ = result.stderr.splitlines()
    assert first.startswith("method: full (assumed: ") and second.startswith("tokens_per_sample: 1024 (assumed: ")
    assert third.endswith("comment.sh:2 --per_device_train_batch_size)")
    header, row = run("comment.sh", "--as-csv").stdout.splitlines()[:2]
    assert "assumed" in header.split(",") and "tokens_per_sample = 1024" in row


def test_gpus_requested_from_slurm_are_in_every_format_of_the_answer() -> None:
    path = str(CASES / "more/typed.sbatch")
    answer = json.loads(
        CliRunner().invoke(app, ["recommend", "--job", path, "--gpu-model", "V100-32GB", "--json"]).stdout
    )
    counts = {row["key"]: row["value"] for row in answer["read"] if row["key"].startswith("#SBATCH")}
    assert counts == {"#SBATCH --gres": "v100:4", "#SBATCH --nodes": "2"}
    assert answer["gpu_model"] == "V100-32GB" and any("Tesla-V100" in line for line in answer["notes"])
    _, row = (
        CliRunner()
        .invoke(app, ["recommend", "--job", path, "--gpu-model", "V100-32GB", "--as-csv"])
        .stdout.splitlines()
    )
    assert "#SBATCH --nodes: 2" in row


def test_a_gpu_name_that_fits_several_types_is_an_error_that_names_the_option() -> None:
    result = CliRunner().invoke(app, ["recommend", "--job", str(CASES / "more/in_bash.sbatch")])
    assert (result.exit_code, "--gpu-model" in result.stderr, "a100" in result.stderr) == (2, True, True)
