"""Real runs as rows: what their traces leave free on the GPU, and whether they ran.

``python -m autoconf.pipeline.calibration.real_rows RUNS.csv ...`` traces tables of runs, each run with its own stack
and libraries
(``autoconf.pipeline.validation.compare_measured``), and writes ``real_rows.csv`` beside this file. The tables
themselves are not shipped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from autoconf.errors import AutoConfError, BadInput
from autoconf.predictor.autogluon import LABEL

ROWS = Path(__file__).with_name("real_rows.csv")

# Runs that say nothing of what must stay free: by table and line (the header's is 1), and by model.
_SCATTER_MOE = "ran with fast_moe, whose layers are not the traced ones"
LEFT_OUT_LINES = {("campaign_sample", 66): _SCATTER_MOE, ("campaign_sample", 68): _SCATTER_MOE}
LEFT_OUT_MODELS = {"granite-8b-japanese": "its shapes are an assumption, which a run contradicts"}


def read_rows(path: Path = ROWS) -> pd.DataFrame:
    """The real rows that say what must stay free.

    Returns:
        Columns ``table`` (of runs, without its suffix) and ``line``; ``model`` (the architecture's name), ``method``
        and ``stack`` (a name within the table); ``number_gpus`` and ``tokens_per_gpu`` (of a micro-batch);
        ``mixture_of_experts`` (0 or 1); ``usable_gib`` (of the GPU), ``peak_gib`` (traced, per GPU) and
        ``activations_gib`` (of the peak, what grows with the tokens); ``fits`` (0 or 1).

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
        BadInput: the table is not one of runs.
        AutoConfError: a run cannot be traced, or its libraries cannot be installed.
    """
    from autoconf.pipeline.validation.benchmark_runs import read_runs
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
                LABEL: int(not c.run.failed),
                "left_out": reason,
            }
        )
    return pd.DataFrame(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Trace tables of runs and write their rows; 2 for bad input, 1 if something cannot be traced, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", type=Path, nargs="+", help="CSV of runs, as autoconf/pipeline/validation/benchmark_runs.py reads it"
    )
    parser.add_argument("--output", type=Path, default=ROWS, help="where to write the rows (default: beside this file)")
    options = parser.parse_args(arguments)
    try:
        rows = pd.concat([traced_rows(path) for path in options.runs], ignore_index=True)
    except (BadInput, AutoConfError) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, BadInput) else 1
    rows.to_csv(options.output, index=False, lineterminator="\n")
    print(f"{len(rows)} rows, {(rows['left_out'] != '').sum()} of them left out, written to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
