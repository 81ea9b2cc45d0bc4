"""Measured throughput of public runs, cleaned by stated rules, as a compact table.

``python -m autoconf.pipeline.throughput.rows TABLE.csv ...`` reads tables of runs (the formats of
``autoconf.pipeline.validation.benchmark_runs``, with ``tokens_per_second`` of the job or ``tokens_per_second_per_gpu``)
and writes ``rows.csv`` and ``stacks.json`` in this folder. The tables are public and not shipped:
fms-acceleration's benchmarks and LLMFineTuningBench, both Apache-2.0.

A row falls out if

- its FLOPs, recomputation included, exceed 70 % of the GPU's published peak: it counts other tokens than it processed.
  Library matrix products alone reach about 80 % on these GPUs, and a training step has other work.
- its optimizer states are in managed memory (``paged_adamw_32bit``) and all parameters train: pages move to the host.
- it ran with ``fast_moe``, or its model's shapes are an assumption that a run contradicts (as for memory).
- another table has the same run: the same job with the same figure within 0.2 %.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from autoconf.errors import AutoConfError
from autoconf.jobs.stack import Stack
from autoconf.pipeline.calibration.real_rows import LEFT_OUT_LINES, LEFT_OUT_MODELS
from autoconf.pipeline.validation.benchmark_runs import Run, read_runs
from autoconf.speed.gpu_speed import gpu_speeds
from autoconf.speed.shapes import known_shapes
from autoconf.speed.work import Layout, work_of

ROWS = Path(__file__).with_name("rows.csv")
STACKS = Path(__file__).with_name("stacks.json")
RATE = "tokens_per_second"  # of the whole job

LARGEST_SHARE = 0.7  # of the published peak
OTHER_TOKENS = f"exceeds {LARGEST_SHARE:.0%} of the GPU's peak: counts other tokens"
PAGED = "optimizer states in managed memory"
TWICE = "the same run is in another table"
_SAME = 0.002
_GPTQ = "gptq-lora"  # not a method of jobs; its rows teach what a quantized base costs
_JOB = ["model", "method", "gpu_model", "number_gpus", "samples", "tokens_per_sample"]


def read_rows(path: Path = ROWS) -> pd.DataFrame:
    """Read the measured rows that did not fall out.

    Returns:
        Columns ``table`` and ``line`` (the header is line 1), ``model`` (the architecture's name), ``method``,
        ``stack`` (a name in ``stacks.json``), ``gpu_model``, ``number_gpus``, ``nodes``, ``samples`` (of a micro-batch
        on each GPU), ``tokens_per_sample``, ``steps`` (micro-batches of an update) and ``tokens_per_second`` (of all
        GPUs).

    Raises:
        AutoConfError: the file cannot be read.

    >>> rows = read_rows()
    >>> bool((rows["tokens_per_second"] > 0).all())
    True
    """
    rows = all_rows(path)
    return rows[rows["left_out"] == ""].drop(columns="left_out").reset_index(drop=True)


def all_rows(path: Path = ROWS) -> pd.DataFrame:
    """Read all measured rows; ``left_out`` is the reason why one fell out, or empty.

    Raises:
        AutoConfError: the file cannot be read.
    """
    try:
        return pd.read_csv(path, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise AutoConfError(f"cannot read {path.name}: {error}") from error


def read_stacks(path: Path = STACKS) -> dict[str, Stack]:
    """Read the training stacks of the rows, by name.

    Raises:
        AutoConfError: the file cannot be read.
    """
    try:
        return {name: Stack(**settings) for name, settings in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError) as error:
        raise AutoConfError(f"cannot read {path.name}: {error}") from error


def rows_of(path: Path, stacks: dict[str, Stack]) -> pd.DataFrame:
    """Read a table of runs: the columns of ``all_rows``.

    Args:
        path: the table.
        stacks: the stacks by name; new ones are added.

    Raises:
        BadInput: the table is not a table of runs.
        AutoConfError: it has no throughput.
    """
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    rates = table.get(RATE, table.get(f"{RATE}_per_gpu"))
    if rates is None:
        raise AutoConfError(f"{path}: has neither {RATE} nor {RATE}_per_gpu")
    found: list[dict[str, Any]] = []
    for run in _runs(path, table):
        written, rate = table.iloc[run.line - 2], rates.iloc[run.line - 2]
        if rate == "":
            continue
        stack = _stack(run, written)
        row = {
            "table": path.stem,
            "line": run.line,
            "model": run.architecture.name,
            "method": written["method"],
            "stack": _name(f"{run.stack_name}, {written['method']}", stack, stacks),
            "gpu_model": written.get("gpu_model", "NVIDIA-A100-SXM4-80GB"),
            "number_gpus": run.gpus,
            "nodes": int(float(written.get("nodes") or 1)),
            "samples": run.samples,
            "tokens_per_sample": run.tokens_per_gpu // run.samples,
            "steps": run.accumulation,
            RATE: round(float(rate) * (1 if RATE in table else run.gpus), 3),
        }
        found.append({**row, "left_out": _left_out(run, row, stack, written)})
    return pd.DataFrame(found)


def _stack(run: Run, written: pd.Series) -> Stack:
    """The stack of a run; a base in GPTQ counts as one in NF4, whose packed weights are as large."""
    gptq = written["method"] == _GPTQ
    settings: dict[str, Any] = {"quantization": "nf4"} if gptq or run.method == "qlora" else {}
    if gptq and "framework" not in written:  # the campaign ran GPTQ with the fused adapters of fms-acceleration
        settings["kernels"] = tuple(dict.fromkeys((*run.stack.kernels, "fused_lora")))
    return run.stack.model_copy(update=settings)


def _name(name: str, stack: Stack, stacks: dict[str, Stack]) -> str:
    """A name for a stack that no other stack has; it is added to ``stacks``."""
    number = 1
    while stacks.setdefault(one := name if number == 1 else f"{name} ({number})", stack) != stack:
        number += 1
    return one


def _runs(path: Path, table: pd.DataFrame) -> list[Run]:
    """The runs of a table; those of the campaign with GPTQ are read as LoRA."""
    if "framework" in table:
        return read_runs(path)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        table = table.assign(method=table["method"].replace({_GPTQ: "lora"}))
        if "fms_hf_tuning" in table:  # only rows with GPTQ have this version, whose libraries are not known here
            table["fms_hf_tuning"] = table["fms_hf_tuning"].replace({"2.1.0": "2.4.0"})
        table.to_csv(copy, index=False)
        return read_runs(copy)


def _left_out(run: Run, row: dict[str, Any], stack: Stack, written: pd.Series) -> str:
    reason = LEFT_OUT_LINES.get((row["table"], run.line)) or LEFT_OUT_MODELS.get(row["model"], "")
    if reason:
        return reason
    if str(written.get("optimizer", "")).startswith("paged") and row["method"] == "full":
        return PAGED
    return OTHER_TOKENS if share_of_peak(row, stack) > LARGEST_SHARE else ""


def share_of_peak(row: Any, stack: Stack) -> float:
    """The share of the GPU's published peak at which a row computed, recomputation included."""
    shapes = known_shapes(row["model"])
    assert shapes is not None
    layout = Layout(row["samples"], row["tokens_per_sample"], row["number_gpus"], row["nodes"], row["steps"])
    work = work_of(shapes, as_method(row["method"]), stack, layout)
    each = row[RATE] / row["number_gpus"] / work.tokens
    return (work.flops + work.attention_flops) * each / gpu_speeds()[row["gpu_model"]].flops(work.dtype)


def as_method(method: str) -> str:
    """The method of a job that a row's method is computed as."""
    return "qlora" if method == _GPTQ else method


def without_repeats(rows: pd.DataFrame) -> pd.DataFrame:
    """Mark rows of ``throughput_...`` tables that another table has as well, with more settings."""
    rows = rows.reset_index(drop=True)
    named = rows[~rows["table"].str.startswith("throughput")]
    known = {key: group[RATE].tolist() for key, group in named.groupby(_JOB)}
    for index, row in rows[rows["table"].str.startswith("throughput") & (rows["left_out"] == "")].iterrows():
        if any(abs(row[RATE] / rate - 1) < _SAME for rate in known.get(tuple(row[_JOB]), ())):
            rows.loc[index, "left_out"] = TWICE
    return rows


def main(tables: Annotated[list[Path], typer.Argument(help="tables of runs, CSV")]) -> None:
    """Write the cleaned table of measured throughput."""
    stacks: dict[str, Stack] = {}
    rows = without_repeats(pd.concat([rows_of(path, stacks) for path in tables], ignore_index=True))
    rows.to_csv(ROWS, index=False, lineterminator="\n")
    content = {name: stack.model_dump(exclude_defaults=True) for name, stack in stacks.items()}
    STACKS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    counts = rows["left_out"].replace({"": "kept"}).value_counts()
    print(counts.to_string())


if __name__ == "__main__":
    typer.run(main)
