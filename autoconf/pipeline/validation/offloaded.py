"""Compare jobs whose checkpoints are on the host with traces in which TRL's hooks move them there.

``python -m autoconf.pipeline.validation.offloaded`` traces jobs under PyTorch's own wrappers (``rank_trace``), at full
depth, with the hooks of ``tracing.offloading``, and writes the table next to this file.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from rich.console import Console

from autoconf.jobs.stack import Stack
from autoconf.memory.store import ModelsTable
from autoconf.pipeline.catalog import NEWEST, architectures
from autoconf.pipeline.tracing.model_setup import Method, TrainingSetup
from autoconf.pipeline.validation.composition import summary, worst
from autoconf.pipeline.validation.whole_jobs import compare_jobs
from autoconf.predictor import registry

OUTPUT = Path(__file__).with_name("offloaded.csv")
MODELS = ("smollm2-135m", "llama3.2-1b", "pythia-160m", "opt-125m", "olmoe-1b-7b")
METHODS: tuple[Method, ...] = ("full", "lora", "qlora")
TOKENS = (1_018, 16_394)
BELOW_PERCENT = 0.05  # a bound, up to the rounding of figures
_SEED = 20261130
_PLACES = ((1, "fsdp2"), (8, "fsdp2"), (8, "ddp"), (8, "fsdp1"))
_REGIMES: tuple[dict[str, Any], ...] = (
    {},
    {"mixed_precision": "bf16", "adapter_dtype": "float32"},
    {"mixed_precision": "bf16", "adapter_dtype": "float32", "torch_dtype": "float32"},
)


def jobs() -> Iterator[TrainingSetup]:
    """Each model with each method, in turn on one GPU and under each kind of sharding."""
    chance = random.Random(_SEED)
    for number, (model, method) in enumerate(itertools.product(MODELS, METHODS)):
        gpus, sharding = _PLACES[number % 4]
        settings = {
            **chance.choice(_REGIMES[: 2 if method == "qlora" else 3]),
            "sharding": sharding,
            "gradient_checkpointing": "offloaded",
            "gradient_accumulation": chance.choice((False, True)),
            "loss": chance.choice(("full", "chunked")),
            "lora_r": 16,
            "lora_targets": chance.choice(("attention", "all-linear")) if method != "full" else "default",
            "quantization": "nf4" if method == "qlora" else "none",
        }
        yield TrainingSetup(architectures()[model], method, Stack.model_validate(settings), gpus)


def main(
    figures: Annotated[Path, typer.Option(help="folder with the figures of a version")] = registry.MODELS / NEWEST,
) -> None:
    """Run the comparisons, and write the table."""
    console, table = Console(), ModelsTable.read(figures)
    found = compare_jobs(table, zip(jobs(), itertools.cycle(TOKENS), strict=False), OUTPUT)
    console.print(pd.DataFrame(summary(found)).to_string(index=False), soft_wrap=True)
    console.print(pd.DataFrame(worst(found, 6)).to_string(index=False), soft_wrap=True)
    sys.exit(int(min(c.difference_percent for c in found) < -BELOW_PERCENT))


if __name__ == "__main__":
    typer.run(main)
