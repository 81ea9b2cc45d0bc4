"""Real runs as rows: the memory that their traced peaks leave free on the GPU, and whether they finished.

``python -m autoconf.pipeline.calibration.real_rows RUNS.csv ...`` traces tables of runs, each run with its own stack
and libraries (``autoconf.pipeline.validation.compare_measured``), and writes ``real_rows.csv`` in this folder. The
tables themselves are not shipped. With ``--check`` it writes nothing and compares the peaks with those in
``real_rows.csv``: ``make measured-sample`` does so with one run of each library environment (the tables in
``pipeline/validation/one_run_per_environment``).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from autoconf.errors import AutoConfError, BadInput
from autoconf.memory.model import StackMemory
from autoconf.memory.units import GIB
from autoconf.pipeline.validation.benchmark_runs import Run, read_runs
from autoconf.predictor import registry
from autoconf.predictor.autogluon import LABEL

ROWS = Path(__file__).with_name("real_rows.csv")
TOLERANCE_GIB = 0.002  # rows are rounded to 0.001
_KEYS = ("model", "method", "stack", "number_gpus", "tokens_per_gpu")  # of two runs that hold the same memory

# Runs that are not used to learn the margin: by table and line (the header is line 1), and by model.
_SCATTER_MOE = "ran with fast_moe, whose layers are not the traced ones"
LEFT_OUT_LINES = {("campaign_sample", 66): _SCATTER_MOE, ("campaign_sample", 68): _SCATTER_MOE}
LEFT_OUT_MODELS = {"granite-8b-japanese": "its shapes are an assumption, which a run contradicts"}


def read_rows(path: Path = ROWS) -> pd.DataFrame:
    """Read the real rows from which the margin is learned.

    Returns:
        Columns ``table`` (of runs, without its suffix) and ``line``; ``model`` (the architecture's name), ``method``
        and ``stack`` (a name within the table); ``number_gpus`` and ``tokens_per_gpu`` (of a micro-batch);
        ``mixture_of_experts`` (0 or 1); ``usable_gib`` (of the GPU), ``peak_gib`` (traced, per GPU) and
        ``activations_gib`` (the part of the peak that grows with the tokens); ``states_gib`` (gradients and optimizer
        states, with adapters on the model's own pair of modules); ``fits`` (0 or 1).

    Raises:
        AutoConfError: the file cannot be read.

    >>> rows = read_rows()
    >>> sorted(rows["table"].unique())
    ['campaign_sample', 'measured_peaks_a100', 'measured_runs_mistral7b']
    """
    try:
        rows = pd.read_csv(path, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise AutoConfError(f"cannot read {path.name}: {error}") from error
    return rows[rows["left_out"] == ""].drop(columns="left_out").reset_index(drop=True)


def traced_rows(path: Path) -> pd.DataFrame:
    """Trace a table of runs: the columns of ``read_rows``, and ``left_out`` (why, or empty).

    Raises:
        BadInput: the table is not a table of runs.
        AutoConfError: a run cannot be traced, or its libraries cannot be installed.
    """
    from autoconf.pipeline.validation.compare_measured import compare  # which makes environments

    comparisons = compare(read_runs(path))
    rows = []
    for c in comparisons:
        if c.traced_gib is None:
            raise AutoConfError(f"{path}, line {c.run.line}: cannot be traced: {c.problem}")
        model = c.run.architecture.name
        reason = LEFT_OUT_LINES.get((path.stem, c.run.line)) or LEFT_OUT_MODELS.get(model, "")
        rows.append(
            {
                "table": path.stem,
                "line": c.run.line,
                "model": model,
                "method": c.run.method,
                "stack": c.run.stack_name,
                "number_gpus": c.run.gpus,
                "tokens_per_gpu": c.run.tokens_per_gpu,
                "mixture_of_experts": int(c.run.architecture.is_mixture_of_experts),
                "usable_gib": c.run.usable_gib,
                "peak_gib": round(c.traced_gib, 3),
                "activations_gib": round(c.activations_gib, 3),
                "states_gib": 0.0 if reason else round(_states_gib(c.run), 3),
                LABEL: int(not c.run.failed),
                "left_out": reason,
            }
        )
    return pd.DataFrame(rows)


def _states_gib(run: Run) -> float:
    """Gradients and optimizer states, which do not depend on the settings that are replaced here."""
    memory = registry.load("2.0.0").memory  # which has all models of the rows, and never changes
    assert isinstance(memory, StackMemory)
    traced: dict[str, Any] = {"lora_targets": "default", "lora_dropout": 0.0, "kernels": ()}
    if run.method == "qlora":
        traced |= {"quantization": "none", "upcast_unquantized": "none", "mixed_precision": "no"}
    method = "full" if run.method == "full" else "lora"
    row = memory.row(run.architecture.name, method, run.stack.model_copy(update=traced))
    return float(memory.resident_bytes(np.array([row]), np.array([run.gpus]), states=True)[0]) / GIB


def differing(rows: pd.DataFrame, published: pd.DataFrame) -> list[str]:
    """Find runs whose peaks differ from the published table.

    Args:
        rows: rows from ``traced_rows``; lines may differ from those of the published table.
        published: rows from ``read_rows``.

    Returns:
        One sentence for each run that differs, or that is not in the published table.

    >>> published = read_rows()
    >>> differing(published.tail(2).assign(peak_gib=1.0), published.head(3))[0]
    'mistral-7b-v0.1, lora, fms-hf-tuning 2.8.2, 8 GPUs: is not in the published table'
    """
    known = published.groupby(list(_KEYS))["peak_gib"].agg(list).to_dict()
    sentences = []
    for key, peak in zip(rows[list(_KEYS)].itertuples(index=False, name=None), rows["peak_gib"], strict=True):
        model, method, stack, gpus, _ = key
        peaks = known.get(key, [])  # several if runs differ in settings that rows do not have, such as accumulation
        if not any(abs(peak - other) <= TOLERANCE_GIB for other in peaks):
            problem = f"{peak} GiB traced, {peaks[0]} published" if peaks else "is not in the published table"
            sentences.append(f"{model}, {method}, {stack}, {gpus} GPU{'s' * (gpus > 1)}: {problem}")
    return sentences


def main(
    runs: Annotated[list[Path], typer.Argument(help="CSV of runs, as pipeline/validation/benchmark_runs.py reads it")],
    output: Annotated[Path, typer.Option(help="where to write the rows")] = ROWS,
    check: Annotated[
        bool, typer.Option("--check", help="write nothing; compare peaks with the published rows")
    ] = False,
) -> None:
    """Trace tables of runs and write their rows.

    The exit code is 2 for bad input, and 1 if a run cannot be traced or, with --check, differs from its published peak.
    """
    try:
        rows = pd.concat([traced_rows(path) for path in runs], ignore_index=True)
    except (BadInput, AutoConfError) as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2 if isinstance(error, BadInput) else 1) from None
    if check:
        problems = differing(rows, read_rows())
        print("\n".join([*problems, f"{len(rows) - len(problems)} of {len(rows)} runs have the published peak"]))
        raise typer.Exit(int(bool(problems)))
    rows.to_csv(output, index=False, lineterminator="\n")
    print(f"{len(rows)} rows, {(rows['left_out'] != '').sum()} of them left out, written to {output}")


if __name__ == "__main__":
    typer.run(main)
