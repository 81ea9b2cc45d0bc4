"""Compare composed memory of random jobs under FSDP's other strategies with PyTorch's own wrappers.

As in ``composition``, which has FULL_SHARD. Under a hybrid strategy two nodes run, each with the GPUs of the table.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, get_args

import numpy as np
import pandas as pd
import typer
from rich.console import Console
from rich.progress import track

from autoconf.jobs.stack import JobSharding, sharding_parts
from autoconf.memory.store import ModelsTable
from autoconf.pipeline.catalog import NEWEST, architectures
from autoconf.pipeline.report import VALIDATION, markdown, write_section
from autoconf.pipeline.tracing.model_setup import TrainingSetup
from autoconf.pipeline.validation.composition import compare, draw, is_supported, row, summary, worst
from autoconf.predictor.registry import MODELS

OUTPUT = Path(__file__).with_name("fsdp_strategies.csv")
SHARDINGS = tuple(name for name in get_args(JobSharding) if sharding_parts(name)[1] != "full_shard")
JOBS = 48
MEDIAN_PERCENT, WORST_PERCENT = 0.5, 3.0
WITH_DROPOUT_PERCENT = 15.0  # adapters with dropout are counted in float32 there, which is an upper bound
_SEED = 20261201
_COMMAND, _WHAT = "make ground-truth", "FSDP strategies composed"


def sample(table: ModelsTable, count: int) -> Iterator[TrainingSetup]:
    """Draw jobs with profiles in the table on several GPUs, the strategies in turn."""
    chance = np.random.default_rng(_SEED)
    # Short stacks of models with one kind of layers predict any number of tokens and GPUs, except with chunked_nll.
    names = [name for name in table.models if len(set(architectures()[name].kinds)) == 1]
    found = 0
    while found < count:
        job = draw(names, chance, sharding=SHARDINGS[found % len(SHARDINGS)])
        if job is None or job.gpus == 1 or job.stack.loss == "chunked_nll":
            continue
        if is_supported(table, job):
            yield job
            found += 1


def main(
    jobs: Annotated[int, typer.Option(help="number of random jobs", min=6)] = JOBS,
    figures: Annotated[Path, typer.Option(help="folder with the figures of a version")] = MODELS / NEWEST,
) -> None:
    """Run the comparisons; write the table next to this file and the section of the documentation."""
    console = Console()
    table = ModelsTable.read(figures)
    drawn = list(sample(table, jobs))
    found = [c for some in track(compare(table, drawn), "tracing", len(drawn), console=console) for c in some]
    pd.DataFrame([row(c) for c in found]).to_csv(OUTPUT, index=False, lineterminator="\n")
    text = (
        f"{len(drawn)} random jobs ([the table](../../autoconf/pipeline/validation/{OUTPUT.name})):\n\n"
        f"{markdown(summary(found))}\n\nThe jobs that differ most:\n\n{markdown(worst(found, 3))}"
    )
    write_section(VALIDATION, _WHAT, _COMMAND, text)
    console.print(pd.DataFrame(summary(found)).to_string(index=False), soft_wrap=True)
    console.print(pd.DataFrame(worst(found, 6)).to_string(index=False), soft_wrap=True)
    differences = np.array([c.difference_percent for c in found])
    limits = [WITH_DROPOUT_PERCENT if c.job.stack.lora_dropout else WORST_PERCENT for c in found]
    missed = (differences > limits) | (differences < -WORST_PERCENT)
    sys.exit(int(np.median(np.abs(differences)) > MEDIAN_PERCENT or missed.any()))


if __name__ == "__main__":
    typer.run(main)
