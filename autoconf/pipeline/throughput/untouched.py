"""Judge the released throughput on rows that nothing was chosen by: public pretraining runs of another project.

``python -m autoconf.pipeline.throughput.untouched README.md`` reads the tables of llm-foundry's training benchmarks
(``scripts/train/benchmarking/README.md`` of github.com/mosaicml/llm-foundry, Apache-2.0, commit 8c8dd48), prints the
errors, and writes them into ``docs/versions/throughput.md``. Models, GPU types, numbers of nodes and most settings are
others than those of the rows that the version was learned from. The tables are public and not shipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from autoconf.errors import AutoConfError
from autoconf.jobs.stack import Stack
from autoconf.pipeline.report import markdown, write_section
from autoconf.pipeline.throughput.evaluate import PAGE, rows, without_physics
from autoconf.pipeline.throughput.physics import Measured, rates
from autoconf.speed.estimate import Speed, SpeedJob, speeds
from autoconf.speed.gpu_speed import gpu_speeds
from autoconf.speed.shapes import Shapes, shapes_of
from autoconf.speed.version import DEFAULT, load
from autoconf.speed.work import Layout, work_of

COMMAND = "python -m autoconf.pipeline.throughput.untouched README.md"
# Width, layers and heads of MPT models: scripts/train/yamls/pretrain/mpt-*.yaml of the same repository.
_MPT = {
    "125m": (768, 12, 12), "350m": (1024, 24, 16), "760m": (1536, 24, 12), "1b": (2048, 24, 16), "3b": (2560, 32, 20),
    "7b": (4096, 32, 32), "13b": (5120, 40, 40), "30b": (7168, 48, 56), "70b": (8192, 80, 64),
}  # fmt: skip
_VOCABULARY = 50368
_GPUS = {
    "a100_40gb": "NVIDIA-A100-SXM4-40GB",
    "a100_80gb": "NVIDIA-A100-SXM4-80GB",
    "h100_80gb": "NVIDIA-H100-80GB-HBM3",
}
_EACH_NODE = 8
_EIGHT_BITS = "amp_fp8"  # matrix products in 8 bits, which no job has


def read_table(path: Path) -> pd.DataFrame:
    """Read the tables of runs in a README: their columns, one row for each run.

    Raises:
        AutoConfError: the file cannot be read or has no such table.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise AutoConfError(f"cannot read {path}: {error}") from error
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines if line.startswith("|")]
    header = next((row for row in cells if "MicroBatchSize" in row), None)
    if header is None:
        raise AutoConfError(f"{path}: has no table of llm-foundry's training benchmarks")
    runs = [row for row in cells if len(row) == len(header) and row != header and not row[0].startswith("-")]
    return pd.DataFrame(runs, columns=header)


def jobs_of(table: pd.DataFrame) -> list[SpeedJob]:
    """The runs as jobs; they train all parameters with FSDP1 and mixed precision."""
    return [_job(row) for row in table.to_dict("records")]


def _job(row: dict[Any, Any]) -> SpeedJob:
    gpus = int(row["# GPUs"])
    checkpointed = row["Activation Checkpointing"] == "True"
    stack = Stack(
        sharding="fsdp1",
        mixed_precision="bf16",
        torch_dtype="float32",
        gradient_checkpointing="non-reentrant" if checkpointed else "none",
    )
    layout = Layout(
        float(row["MicroBatchSize"]), int(row["SeqLen (T)"]), gpus, -(-gpus // _EACH_NODE), int(row["GradAccum"])
    )
    return SpeedJob(f"mpt-{row['Model']}", _shapes(row["Model"]), "full", stack, _GPUS[row["GPU"]], layout)


def _shapes(model: str) -> Shapes:
    hidden, layers, heads = _MPT[model]
    return shapes_of(
        {"model_type": "gpt_neox", "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
         "intermediate_size": 4 * hidden, "vocab_size": _VOCABULARY}
    )  # fmt: skip


def _measured(job: SpeedJob) -> Measured:
    work = work_of(job.shapes, job.method, job.stack, job.layout)
    return Measured(job.shapes, job.method, job.stack, gpu_speeds()[job.gpu_model], job.layout, work)


def figures(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Errors of the released version, of its physics alone and of a LightGBM without physics, by GPU type and nodes."""
    jobs = jobs_of(table)
    runs = [_measured(job) for job in jobs]
    measured = table["Throughput (T/s)"].to_numpy(float)
    found = speeds(load(), jobs)
    predictions = {
        f"throughput {DEFAULT}": np.array([one.tokens_per_second for one in found]),
        "physics alone": rates(runs, load().card.constants),
        "LightGBM without physics": without_physics(rows(), runs),
    }
    several = np.array([job.layout.nodes > 1 for job in jobs])
    gpus = np.array([job.gpu_model for job in jobs])
    groups = {"all": np.ones(len(jobs), bool)}
    for gpu in _GPUS.values():
        groups |= {f"{gpu}, 1 node": (gpus == gpu) & ~several, f"{gpu}, several nodes": (gpus == gpu) & several}
    return [
        {
            "runs": group,
            "rows": int(chosen.sum()),
            "predictor": name,
            "median %": f"{100 * np.median(errors[chosen]):.1f}",
            "p90 %": f"{100 * np.quantile(errors[chosen], 0.9):.1f}",
            "median of predicted / measured": f"{np.median((predicted / measured)[chosen]):.2f}",
            "within bounds %": _inside(found, measured, chosen) if name[0] == "t" else "",
        }
        for group, chosen in groups.items()
        if chosen.any()
        for name, predicted in predictions.items()
        for errors in [np.abs(predicted / measured - 1)]
    ]


def _inside(found: list[Speed], measured: Any, chosen: Any) -> str:
    inside = np.array([one.low <= rate <= one.high for one, rate in zip(found, measured, strict=True)])
    return f"{100 * inside[chosen].mean():.0f}"


def main(readme: Annotated[Path, typer.Argument(help="scripts/train/benchmarking/README.md of llm-foundry")]) -> None:
    """Judge the released throughput on llm-foundry's training benchmarks."""
    table = read_table(readme)
    table = table[(table["Precision"] != _EIGHT_BITS) & table["GPU"].isin(_GPUS)].reset_index(drop=True)
    section = markdown(figures(table))
    print(section)
    write_section(PAGE, "untouched rows", COMMAND, section)


if __name__ == "__main__":
    typer.run(main)
