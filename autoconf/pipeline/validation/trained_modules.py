"""Compare jobs that train embeddings or head beside adapters with traces of PEFT's ``modules_to_save``.

``python -m autoconf.pipeline.validation.trained_modules`` traces jobs of models with tied and untied embeddings under
PyTorch's own wrappers (``rank_trace``), at full depth, and writes the table next to this file.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

import pandas as pd
import typer
from rich.console import Console

from autoconf.jobs.stack import Stack, TrainedModules
from autoconf.memory.store import ModelsTable
from autoconf.pipeline.catalog import NEWEST, architectures
from autoconf.pipeline.tracing.model_setup import TrainingSetup
from autoconf.pipeline.tracing.ways import ADAPTING
from autoconf.pipeline.validation.composition import summary, worst
from autoconf.pipeline.validation.whole_jobs import compare_jobs
from autoconf.predictor import registry

OUTPUT = Path(__file__).with_name("trained_modules.csv")
MODELS = ("opt-125m", "llama3.2-1b", "pythia-160m", "olmo-2-1b")  # two with tied embeddings, two without
TOKENS = (1_018, 16_394)
BELOW_PERCENT = 1.0  # a composed peak may be this much below the traced one
_SEED = 20261130
_PLACES = ((1, "fsdp2"), (8, "fsdp2"), (8, "ddp"), (8, "fsdp1"))
_REGIMES: tuple[dict[str, Any], ...] = ({}, {"mixed_precision": "bf16", "adapter_dtype": "float32"})
_CHECKPOINTING = ("non-reentrant", "none", "reentrant")


def jobs() -> Iterator[TrainingSetup]:
    """Each model with each of the modules, these in turn on one GPU and under each kind of sharding."""
    chance = random.Random(_SEED)
    values = [value for value in get_args(TrainedModules) if value != "none"]
    for (number, model), (other, trained) in itertools.product(enumerate(MODELS), enumerate(values)):
        method, (gpus, sharding) = chance.choice(ADAPTING), _PLACES[(number + other) % 4]
        settings = {
            **chance.choice(_REGIMES),
            "trained_modules": trained,
            "sharding": sharding,
            "gradient_checkpointing": chance.choice(_CHECKPOINTING),
            "gradient_accumulation": chance.choice((False, True)),
            "lora_r": 16,
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
