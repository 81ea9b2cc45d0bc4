"""Tables of real runs are read and compared with traces."""

from __future__ import annotations

import ast
import csv
import json
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import typer

from autoconf.errors import AutoConfError, BadInput
from autoconf.memory.units import GIB
from autoconf.pipeline import report
from autoconf.pipeline.validation import compare_measured, environments
from autoconf.pipeline.validation.benchmark_runs import Run, read_runs
from autoconf.pipeline.validation.compare_measured import Comparison

# A row of fms-acceleration's benchmarks: https://github.com/foundation-model-stack/fms-acceleration
BENCHMARK = {
    "model": "bigcode/gpt_bigcode-santacoder", "method": "full", "number_gpus": 1, "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1, "tokens_per_sample": 2048, "mixed_precision": "none", "framework": "none",
    "lora_targets": "", "peak_allocated_gib": 10.4939, "failed": 0,
    "transformers": "4.48.1", "peft": "0.13.2", "accelerate": "1.0.1",
}  # fmt: skip
CAMPAIGN = {
    "model_name": "granite-3.1-2b", "method": "lora", "gpu_model": "NVIDIA-A100-SXM4-80GB", "number_gpus": 4,
    "tokens_per_sample": 1024, "batch_size": 16, "gradient_accumulation_steps": "", "fast_kernels": "none",
    "checkpointing": "non-reentrant", "fms_hf_tuning": "2.8.2", "failed": 0,
}  # fmt: skip
QLORA = {
    "model": "mistralai/Mistral-7B-v0.1", "method": "qlora", "mixed_precision": "bf16", "tokens_per_sample": 4096,
    "lora_targets": "q_proj|k_proj|v_proj|o_proj",
}  # fmt: skip


def command(path: Path, today: bool = False) -> int:
    """The command's exit code."""
    with pytest.raises(typer.Exit) as ended:
        compare_measured.main(path, today)
    return ended.value.exit_code


@pytest.fixture
def table(tmp_path):
    def write(*rows: dict) -> Path:
        path = tmp_path / "runs.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        return path

    return write


def test_a_row_is_a_job_under_the_stack_of_its_framework(table):
    row = {**BENCHMARK, "number_gpus": 2, "per_device_train_batch_size": 8}
    (run,) = read_runs(table(row))
    assert (run.line, run.gpus, run.tokens_per_gpu) == (2, 2, 8 * 2048)
    assert (run.method, run.failed, run.peak_gib, run.unreported_gib) == ("full", False, 10.4939, 0.0)
    assert run.architecture.config["vocab_size"] == 49153  # after the tokenizer, not the checkpoint's 49280
    assert run.libraries is not None and run.libraries.name == (
        "transformers-4.48.1-peft-0.13.2-accelerate-1.0.1-bitsandbytes-0.43.3"
    )
    stack = run.stack
    assert (stack.optim, stack.gradient_checkpointing, stack.sharding) == ("adamw_torch", "reentrant", "fsdp1")
    assert (stack.adapter_dtype, stack.lora_r, stack.lora_dropout) == ("float32", 16, 0.1)
    assert (stack.gradient_accumulation, stack.mixed_precision, stack.kernels) == (False, "no", ())
    assert run.job()["gpus"] == 2


@pytest.mark.parametrize(
    ("cells", "settings"),
    [
        ({"framework": "none", "mixed_precision": "bf16"}, {"mixed_precision": "bf16", "quantization": "none"}),
        ({"gradient_accumulation_steps": 4}, {"gradient_accumulation": True}),
        ({"framework": "foak-fast-kernels-liger"}, {"loss": "chunked", "quantization": "none"}),
        ({**QLORA, "framework": "baseline-peft-bnb"}, {"quantization": "nf4", "upcast_unquantized": "norms"}),
        ({**QLORA, "framework": "accelerated-peft-bnb"}, {"quantization": "nf4", "upcast_unquantized": "none"}),
        (
            {**QLORA, "framework": "accelerated-peft-bnb-foak"},
            {"shard_adapters": False, "lora_targets": ("q_proj", "k_proj", "v_proj", "o_proj")},
        ),
        (
            {**QLORA, "method": "gptq-lora", "mixed_precision": "fp16", "framework": "accelerated-peft-autogptq"},
            {"quantization": "nf4", "mixed_precision": "bf16"},
        ),
    ],
)
def test_cells_decide_settings(table, cells, settings):
    (run,) = read_runs(table({**BENCHMARK, **cells}))
    assert {setting: getattr(run.stack, setting) for setting in settings} == settings
    assert run.method == ("qlora" if run.stack.quantization == "nf4" else "full")


@pytest.mark.parametrize(("model", "tokens"), [(BENCHMARK["model"], 2048), ("mistralai/Mistral-7B-v0.1", 4096)])
def test_a_failed_run_had_the_longest_sample_of_its_model(table, model, tokens):
    row = {**BENCHMARK, "model": model, "tokens_per_sample": "", "peak_allocated_gib": "", "failed": 1}
    (run,) = read_runs(table(row))
    assert (run.failed, run.peak_gib, run.tokens_per_gpu) == (True, None, 4 * tokens)


def test_a_padded_run_is_for_decisions_only(table):
    (run,) = read_runs(table({**BENCHMARK, "tokens_per_sample": ""}))
    assert (run.failed, run.peak_gib) == (False, None)


@pytest.mark.parametrize(("gpus", "parameters"), [(1, 0), (2, 13_631_488)])
def test_whole_adapters_are_missing_from_the_report_of_several_gpus(table, gpus, parameters):
    row = {**BENCHMARK, **QLORA, "framework": "accelerated-peft-bnb-foak", "number_gpus": gpus}
    (run,) = read_runs(table(row))
    # Rank 16 for q, k, v and o of 32 layers, 4096 wide with 1024 for keys and values.
    assert run.unreported_gib * GIB == 4 * parameters == 4 * (gpus > 1) * 32 * 16 * (2 * 8192 + 2 * 5120)


def test_a_row_of_the_campaign_is_a_job(table):
    gptq = {**CAMPAIGN, "method": "gptq-lora"}
    fast = {**CAMPAIGN, "fast_kernels": "True,True,True", "gradient_accumulation_steps": 1, "failed": 1}
    plain, faster = read_runs(table(CAMPAIGN, gptq, fast))
    assert (plain.line, faster.line) == (2, 4)
    assert (plain.tokens_per_gpu, plain.gpus, plain.usable_gib) == (16 * 1024 // 4, 4, 79.15)
    assert plain.libraries is not None and plain.libraries.transformers == "4.50.3"
    assert (plain.stack.gradient_accumulation, faster.stack.gradient_accumulation) == (True, False)
    assert plain.stack.kernels == () and "fast_loss" in faster.stack.kernels
    assert (plain.failed, faster.failed, plain.peak_gib) == (False, True, None)


def test_the_campaign_may_leave_columns_out(table):
    required = ("model_name", "method", "gpu_model", "number_gpus", "tokens_per_sample", "batch_size")
    (run,) = read_runs(table({column: CAMPAIGN[column] for column in required}))
    assert (run.stack, run.failed) == (read_runs(table(CAMPAIGN))[0].stack, False)


@pytest.mark.parametrize(
    ("row", "column", "value", "says"),
    [
        (BENCHMARK, "framework", "unsloth", "framework: must be one of none, foak-fast-kernels, "),
        (BENCHMARK, "model", "bigcode/starcoder", "model: must be one of bigcode/gpt_bigcode-santacoder, ibm/"),
        (BENCHMARK, "number_gpus", "two", "number_gpus: must be a whole number >= 1, got 'two'"),
        (BENCHMARK, "number_gpus", "0", "number_gpus: must be a whole number >= 1, got '0'"),
        (BENCHMARK, "per_device_train_batch_size", "", "per_device_train_batch_size: must be a whole number >= 1"),
        (BENCHMARK, "gradient_accumulation_steps", "1.5", "gradient_accumulation_steps: must be a whole number >= 1"),
        (BENCHMARK, "tokens_per_sample", "2k", "tokens_per_sample: must be a whole number >= 1, got '2k'"),
        (BENCHMARK, "mixed_precision", "bfloat16", "mixed_precision: must be one of none, bf16, fp16; got 'bfloat16'"),
        (BENCHMARK, "peak_allocated_gib", "10,49", "peak_allocated_gib: must be a number of GiB > 0, got '10,49'"),
        (BENCHMARK, "peak_allocated_gib", "nan", "peak_allocated_gib: must be a number of GiB > 0, got 'nan'"),
        (BENCHMARK, "failed", "yes", "failed: must be one of 0, 1; got 'yes'"),
        (BENCHMARK, "method", "qlora", "method: must be one of full, lora; got 'qlora'"),
        (BENCHMARK, "transformers", "", "transformers: must be a non-empty text"),
        (CAMPAIGN, "model_name", "granite-3.1-2", "names, such as granite-3.1-2b, "),
        (CAMPAIGN, "gpu_model", "H1", "gpu_model: must be one of "),
        (CAMPAIGN, "batch_size", "x", "batch_size: must be a whole number >= 1, got 'x'"),
        (
            CAMPAIGN,
            "checkpointing",
            "on",
            "checkpointing: must be one of none, reentrant, non-reentrant, offloaded; got ",
        ),
        (CAMPAIGN, "fms_hf_tuning", "9.9", "fms_hf_tuning: must be one of 2.4.0, 2.7.1, "),
        (CAMPAIGN, "failed", "", "failed: must be one of 0, 1; got ''"),
    ],
)
def test_a_bad_cell_is_named_with_its_line_and_the_allowed_values(table, capsys, row, column, value, says):
    path = table(row, {**row, column: value})
    assert command(path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{path}, line 3: {column}: ")
    assert says in line


def test_a_missing_column_is_named(table, capsys):
    row = {column: value for column, value in BENCHMARK.items() if column not in ("failed", "peft")}
    path = table(row)
    assert command(path) == 2
    assert capsys.readouterr().err == f"{path}: required column missing: failed, peft\n"


def test_an_invalid_table_is_named(tmp_path, capsys):
    for name, content in (("absent.csv", None), ("empty.csv", "")):
        path = tmp_path / name
        if content is not None:
            path.write_text(content)
        assert command(path) == 2
        assert str(path) in capsys.readouterr().err
        with pytest.raises(BadInput, match=name):
            read_runs(path)


@pytest.fixture
def run(table) -> Run:
    """A finished run of one GPU, with a measured peak of 10 GiB."""
    return read_runs(table({**BENCHMARK, "peak_allocated_gib": 10}))[0]


def off_by(run: Run, percent: float, **changes) -> Comparison:
    return Comparison(replace(run, **changes), 10 * (1 + percent / 100))


@pytest.mark.parametrize(
    ("traced", "unreported", "percent"), [(10.5, 0.0, 5.0), (9.0, 0.0, -10.0), (10.5, 0.5, 0.0), (None, 0.0, None)]
)
def test_the_difference_excludes_memory_that_the_report_omits(run, traced, unreported, percent):
    comparison = Comparison(replace(run, unreported_gib=unreported), traced)
    assert comparison.difference_percent == (percent if percent is None else pytest.approx(percent))
    assert Comparison(replace(run, peak_gib=None), traced).difference_percent is None


@pytest.mark.parametrize(
    ("gpus", "traced", "activations", "fits"),
    [
        (1, 76.1, 50.0, True),  # 3 GiB must stay free of 79.15
        (1, 76.2, 0.0, False),
        (2, 76.0, 0.0, True),  # 3.1
        (2, 76.1, 0.0, False),
        (2, 70.0, 25.0, True),  # and 0.22 of the activations
        (2, 70.0, 30.0, False),
    ],
)
def test_a_run_fits_if_the_reserve_stays_free(run, gpus, traced, activations, fits):
    finished = Comparison(replace(run, gpus=gpus), traced, activations)
    failed = replace(finished, run=replace(finished.run, failed=True))
    assert finished.predicted_to_fit is failed.predicted_to_fit is fits
    assert [row["measured GiB"] for row in compare_measured.wrong_decisions([finished, failed])] == (
        ["failed"] if fits else [10]
    )


def test_a_run_that_cannot_be_traced_is_decided_wrongly(run):
    (row,) = compare_measured.wrong_decisions([Comparison(run, None, problem="TraceError: other ops")])
    assert (row["line"], row["traced GiB"], row["difference"]) == (2, "TraceError: other ops", "")


def test_groups_show_median_95th_percentile_and_worst_of_absolute_differences(run):
    plain = [off_by(run, percent) for percent in (-0.4, *[0.1] * 9, 0.2, 0.2, 0.2, *[0.3] * 6, -3.0, 3.5)]
    unmeasured = off_by(run, 50, peak_gib=None)
    untraced = Comparison(run, None, problem="TraceError: other ops")
    fused = off_by(run, 5, framework="foak-fast-kernels")
    rows = compare_measured.group_table([*plain, unmeasured, untraced, fused])
    assert [row["rows"] for row in rows] == [
        "full and LoRA, plain transformers",
        "full, LoRA and QLoRA with fused kernels",
    ]
    assert rows[0] == {
        "rows": "full and LoRA, plain transformers",
        "traced": "21 of 22",
        "median": "0.2 % (required 0.5, target 0.1)",
        "95th percentile": "3 % (required 2, target 0.5)",
        "worst": "3.5 % (required 4, target 1)",
    }
    assert rows[1]["worst"] == "5 % (required 12, target 6)"
    assert compare_measured.group_table([unmeasured]) == []


@pytest.mark.parametrize(
    ("framework", "percents", "met"),
    [
        ("none", [0.49] * 19 + [1.99, 3.99], True),
        ("none", [0.51] * 20, False),  # median
        ("none", [0.1] * 18 + [2.1] * 2, False),  # 95th percentile
        ("none", [0.1] * 99 + [4.1], False),  # worst
        ("none", [-0.1] * 99 + [-4.1], False),
        ("baseline-peft-bnb", [0.99] * 19 + [2.99, 5.99], True),
        ("accelerated-peft-bnb", [1.1], False),
        ("accelerated-peft-bnb-foak", [3.99] * 19 + [7.99, 11.99], True),
        ("foak-fast-kernels-liger", [0.0] * 99 + [12.1], False),
        ("accelerated-peft-autogptq", [90], True),  # for decisions only
    ],
)
def test_each_figure_can_miss_its_requirement(run, framework, percents, met):
    rows = [off_by(run, percent, framework=framework) for percent in percents]
    assert compare_measured.required_is_met(rows) is met


@pytest.mark.parametrize("others", [0, 1, 99])
def test_an_untraceable_run_misses_the_requirements(run, others):
    untraced = Comparison(run, None, problem="TraceError: other ops")
    assert not compare_measured.required_is_met([*[off_by(run, 0)] * others, untraced])
    assert compare_measured.required_is_met([off_by(run, 0)] * others)


def test_rows_that_disagree_most_come_first(run):
    untraced = Comparison(replace(run, line=9), None, problem="TraceError: other ops")
    rows = [off_by(run, percent, line=line) for line, percent in ((3, 1), (4, -7), (5, 2))]
    worst = compare_measured.worst_rows([*rows, untraced, off_by(run, 50, peak_gib=None)], count=3)
    assert [(row["line"], row["difference"]) for row in worst] == [(9, ""), (4, "-7.00 %"), (5, "+2.00 %")]


def test_stacks_are_named_whose_rows_differ_in_the_mean(run):
    near = [off_by(run, percent, gpus=1) for percent in (3.0, -3.0)]
    far = [off_by(run, percent, gpus=2) for percent in (3.0, 2.0)]
    untraced = Comparison(replace(run, gpus=4), None, problem="TraceError: other ops")
    rows = compare_measured.by_stack([*near, *far, untraced], above_percent=2)
    assert [(row["GPUs"], row["mean difference"]) for row in rows] == [(2, "+2.5 %"), (4, "TraceError")]


@pytest.mark.parametrize(
    ("percent", "options", "code"), [(0.1, [], 0), (4.5, [], 1), (4.5, ["--today"], 0), (0.1, ["--today"], 0)]
)
def test_the_command_fails_if_a_required_figure_is_missed(table, run, monkeypatch, capsys, percent, options, code):
    asked = []
    # Tracing itself has a separate test below.
    monkeypatch.setattr(
        compare_measured, "compare", lambda runs, today: (asked.append(today), [off_by(r, percent) for r in runs])[1]
    )
    path = table({**BENCHMARK, "peak_allocated_gib": 10})
    assert command(path, today=bool(options)) == code
    assert asked == [bool(options)]
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{percent:.2g} % (required" in printed
    assert "Decided wrongly: 0 of 1: none" in printed


def test_the_command_names_the_obstacle_to_tracing(table, monkeypatch, capsys):
    def broken(*_, **__):
        raise AutoConfError("pip install failed: no matching distribution")

    monkeypatch.setattr(compare_measured.environments, "traced", broken)
    assert command(table(BENCHMARK)) == 1
    assert capsys.readouterr().err == "pip install failed: no matching distribution\n"


@pytest.mark.parametrize("today", [True, False])
@pytest.mark.parametrize("percent", [0.1, 4.5])
def test_a_section_of_the_readme_has_the_tables(run, today, percent):
    text = compare_measured.section([off_by(run, percent)], None, today=today)
    assert f"| full and LoRA, plain transformers | 1 of 1 | {percent:.2g} % (required 0.5, target 0.1) |" in text
    assert ("+4.5 %" in text) == (percent == 4.5 and today)
    assert ("No stack differs by more than 2 %." in text) == (percent == 0.1 and today)
    assert ("runs are decided wrongly" in text) == (not today)


def test_a_section_is_written_between_its_markers_and_nothing_else(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("a\n<!-- x: written by y -->\nold\n<!-- end of x -->\nb\n")
    report.write_section(path, "x", "y", "new")
    assert path.read_text() == "a\n<!-- x: written by y -->\n\nnew\n\n<!-- end of x -->\nb\n"
    with pytest.raises(ValueError, match="no section for z: it needs the markers <!-- z: written by y -->"):
        report.write_section(path, "z", "y", "new")


def test_a_picture_has_every_group(run, tmp_path):
    compare_measured.draw([off_by(run, 1), Comparison(run, None)], tmp_path / "runs.png")
    assert (tmp_path / "runs.png").read_bytes().startswith(b"\x89PNG")


def test_every_distinct_job_is_traced_once_with_the_libraries_of_its_runs(table, monkeypatch):
    asked = []
    figures = {
        "moments": [(GIB, GIB / 8192, 0)], "end": (0, 0, 0), "states": 0, "step": 0, "shards_states": False,
    }  # fmt: skip

    def traced(libraries, jobs):
        asked.append((libraries and libraries.transformers, len(jobs)))
        return [figures] * len(jobs)

    monkeypatch.setattr(compare_measured.environments, "traced", traced)
    rows = [
        BENCHMARK,
        {**BENCHMARK, "per_device_train_batch_size": 8},  # the same job with more tokens
        {**BENCHMARK, "number_gpus": 2},
        {**BENCHMARK, "number_gpus": 4},  # several, like 2
        {**BENCHMARK, "transformers": "4.45.2"},
    ]
    runs = read_runs(table(*rows))
    found = compare_measured.compare(runs)
    assert asked == [("4.48.1", 2), ("4.45.2", 1)]
    assert [round(c.traced_gib - compare_measured.CUBLAS_GIB, 6) for c in found] == [2, 3, 2, 2, 2]
    assert [c.run for c in found] == runs
    asked.clear()
    compare_measured.compare(runs, today=True)
    assert asked == [(None, 2)]


def test_a_process_that_fails_is_no_result(monkeypatch, tmp_path):
    monkeypatch.setattr(environments.sys, "executable", "false")
    with pytest.raises(AutoConfError, match="traces with the installed libraries failed"):
        environments.traced(None, [])


LIBRARIES = environments.Libraries("4.48.1", "0.13.2", "1.0.1", "0.43.3")


@pytest.fixture
def broken_python(monkeypatch, tmp_path):
    """An interpreter that cannot make environments, in a checkout without environments."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho first >&2\necho 'ERROR: no such version' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(environments.sys, "executable", str(python))
    monkeypatch.setattr(environments, "_ROOT", tmp_path)
    return tmp_path


def test_an_environment_that_cannot_be_made_is_an_error_each_time(broken_python):
    for _ in range(2):
        with pytest.raises(AutoConfError, match=r"-m venv .* failed: ERROR: no such version$"):
            environments.python_of(LIBRARIES)


def test_an_environment_is_made_once_for_a_list_of_packages(broken_python, monkeypatch):
    folder = broken_python / ".venv-measured" / LIBRARIES.name
    folder.mkdir(parents=True)
    pins = [f"{name}=={version}" for name, version in LIBRARIES.versions.items()]
    (folder / "installed").write_text("\n".join([*pins, *environments.NEEDED]))
    assert environments.python_of(LIBRARIES) == folder / "bin" / "python"
    monkeypatch.setattr(environments, "NEEDED", (*environments.NEEDED, "one-more"))
    with pytest.raises(AutoConfError, match=r"-m venv .* failed"):
        environments.python_of(LIBRARIES)


def test_environments_have_what_a_trace_imports():
    """A new import in a module must not silently break the environments of other libraries."""
    pytest.importorskip("torch", reason="versions are traced with the extra [build], installed on Python 3.11")
    code = (
        "import json, sys\n"
        "from autoconf.pipeline.validation import record_jobs, replay_jobs, trace_jobs\n"
        "json.dump([m.__file__ for name, m in sys.modules.items() if name.startswith('autoconf')], sys.stdout)"
    )
    files = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
    imported = {name for file in files for name in _imports(Path(file))} - sys.stdlib_module_names - {"autoconf"}
    distributions = {packages_distributions()[name][0].lower().replace("_", "-") for name in imported}
    assert {"numpy", "peft", "pydantic", "torch"} < distributions
    assert distributions <= {"torch", *LIBRARIES.versions, *environments.NEEDED}


def _imports(file: Path) -> set[str]:
    """Packages that a module imports when it is imported itself."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_a_run_is_traced_in_a_process_of_its_own(table):
    for package in ("torch", "transformers", "peft", "bitsandbytes"):
        pytest.importorskip(package, reason="versions are traced with the extra [build], installed on Python 3.11")
    from autoconf.pipeline.tracing.model_setup import TrainingSetup
    from autoconf.pipeline.validation import rank_trace

    (run,) = read_runs(table(BENCHMARK))
    (comparison,) = compare_measured.compare([run], today=True)
    assert comparison.problem == ""
    peak = rank_trace.figures(TrainingSetup(run.architecture, "full", run.stack)).peak_bytes(4 * 2048, 1)
    # And two workspaces of cuBLAS.
    assert comparison.traced_gib == (peak + 2 * 8_519_680) / GIB
    assert comparison.predicted_to_fit
